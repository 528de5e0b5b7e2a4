"""What CUDA launches for a block of RWKV-5 to 7 beside single products, in many orders.

Every kernel's results and the pool after it, against its reference in float64; and where a product
ends in something else, that too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from compiling import Array, Case, error_ratio, specs, told
from support import cuda_emulation

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.cuda import head_end, matmul, norm_mix
from mlc_rwkv_world.kernels.cuda.several_rows import several_rows
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize
from mlc_rwkv_world.versions.rwkv5 import reference as rwkv5
from mlc_rwkv_world.versions.rwkv5.cuda.step import step as step5
from mlc_rwkv_world.versions.rwkv7 import reference as rwkv7
from mlc_rwkv_world.versions.rwkv7.cuda import gates
from mlc_rwkv_world.versions.rwkv7.cuda.step import step as step7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

F16, F32 = "float16", "float32"
PLAIN = Stored(0, F16)
Q4, Q8 = (Stored.symmetric(bits, F16, group=32) for bits in (4, 8))
# Slots that differ, and one that is read and written.
SLOTS = np.array([[0, 1], [2, 3], [4, 4]], np.int32)
PLACES, LAYERS = 6, 2
EPS = 1e-5
# A float32 sum; one behind exponentials; values of 4 and 8 bits that become float16 ones.
NEAR, BEHIND, ROUNDED = 1e-6, 5e-6, 6e-4
RNG = np.random.default_rng(11)
ACTS: dict[str, Any] = {"": np.asarray, "tanh": np.tanh, "sigmoid": formulas.sigmoid}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A kernel, its arguments, and what it should give; the pool after it, where it has one.

    `types` and `outs` are those of tensors as a case has them; every one of `orders` of threads
    must leave the same bits.
    """

    build: Any
    types: Sequence[tuple[Any, ...]]
    outs: Sequence[tuple[Any, ...]]
    given: Sequence[Any]
    exact: Sequence[Array]
    near: float
    pool: Array | None = None
    orders: int = 50


def _normal(*shape: int, dtype: str = F32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def _double(*arrays: Array) -> Any:
    return [a.astype(np.float64) for a in arrays]


def _weight(stored: Stored, n: int, k: int) -> tuple[list[Array], Array]:
    """A weight as kernels take it, two tensors, and its values."""
    tensors = quantize(_normal(n, k) * np.float32(k**-0.5), stored)
    values = dequantize(tensors, stored).astype(np.float64)
    return (tensors if stored.bits else tensors * 2), values


def _pair(stored: Stored, n: int, k: int) -> list[tuple[Any, ...]]:
    found = specs(stored, n, k)
    return found if stored.bits else found * 2


def _blends(
    count: int, width: int, lengths: Sequence[int] | None, *, of_previous: bool, orders: int = 50
) -> Entry:
    """Blends of a step of each sequence, or of prompts of these lengths."""
    offsets = np.cumsum([0, *(lengths or [1] * len(SLOTS))]).astype(np.int32)
    x, vectors = _normal(offsets[-1], width, dtype=F16), _normal(2 + count, width)
    pool = _normal(PLACES, LAYERS, 5, width)
    read = pool[SLOTS[:, 0], 1, 2].astype(np.float64)
    ratios = [1 - ratio if of_previous else ratio for ratio in _double(*vectors[2:])]
    mixed, kept = norm_mix.reference(x, vectors[0], vectors[1], ratios, read, offsets, EPS)
    after = pool.astype(np.float64)
    after[SLOTS[:, 1], 1, 2] = kept
    row, ends = ("t" if lengths else "b", width), [("ends", "int32")] if lengths else []
    state = [("s", LAYERS, 5, width, F32), ("b", 2, "int32")]
    return Entry(
        partial(norm_mix.norm_mix, eps=EPS, of_previous=of_previous),
        [(*row, F16), *[(width, F32)] * (2 + count), *ends, *state],
        [(*row, F32)] * count,
        [x, *vectors, *([offsets] if lengths else []), pool, SLOTS, 1, 2],
        mixed,
        BEHIND,
        after,
        orders,
    )


# (how it lies, N, K, what becomes of it): products that share blocks, and that have other lengths.
SEVERAL = [(Q4, 20, 256, "")] * 3 + [(Q8, 6, 256, "tanh"), (Q8, 34, 512, ""), (Q8, 5, 768, "")]
# Of several rows, in tiles that nothing fills.
TILES = [(Q4, 20, 96, "")] * 2 + [(Q8, 40, 64, "sigmoid"), (Q8, 6, 160, "tanh")]
PLAIN_ONES = [(PLAIN, 18, 72, "")] * 4 + [(PLAIN, 3, 264, "tanh")]


def _several(which: Sequence[tuple[Stored, int, int, str]], rows: int, orders: int) -> Entry:
    """Products with one row, or with several by tensor cores."""
    one = rows == 1
    xs = [_normal(rows, k, dtype=F16) for _, _, k, _ in which]
    weights = [_weight(stored, n, k) for stored, n, k, _ in which]
    exact = [
        ACTS[act](x.astype(np.float64) @ dense.T)
        for x, (_, dense), (*_, act) in zip(xs, weights, which, strict=True)
    ]
    acts = tuple(act for *_, act in which)
    build = partial(several_rows if one else matmul.several, acts=acts)
    known: Any = 1 if one else "rows"
    types = [(known, k, F16) for _, _, k, _ in which]
    types += [spec for stored, n, k, _ in which for spec in _pair(stored, n, k)]
    rounded = NEAR if one or which is PLAIN_ONES else ROUNDED
    return Entry(
        told(build, *(stored for stored, *_ in which)),
        types,
        [(known, n, F32) for _, n, _, _ in which],
        [*xs, *(tensor for tensors, _ in weights for tensor in tensors)],
        exact,
        max(rounded, BEHIND),
        orders=orders,
    )


def _ended() -> dict[str, Entry]:
    """What follows a product of several rows in the same launch."""
    n, k, rows = 20, 96, 21
    x, residual = _normal(rows, k, dtype=F16), _normal(rows, n, dtype=F16)
    tensors, dense = _weight(Q4, n, k)
    product = x.astype(np.float64) @ dense.T
    types, out = [("rows", k, F16), *specs(Q4, n, k)], [("rows", n, F32)]
    old, add, square = ("rows", n, F16), matmul.matmul_add, matmul.matmul_relu_square
    sums, squares = residual + product, np.maximum(product, 0) ** 2
    given = [x, *tensors]
    return {
        "add": Entry(told(add, Q4), [*types, old], out, [*given, residual], [sums], ROUNDED),
        "relu": Entry(told(square, Q4), types, out, given, [squares], 2 * ROUNDED),
    }


def _gates(size: int, rows: int, *, shared: bool, stored: Stored | None = None) -> Entry:
    """What RWKV-7's recurrence takes; with the second factors inside where they are `stored`."""
    heads, count = 3, 4 if shared else 3
    width, ranks = heads * size, (32, 64, 160, 96)[:count]
    k, v, first = _normal(3, rows, width)
    w0, a0, v0, k_k, k_a = _normal(5, width)
    vectors = [w0, a0, *([v0] if shared else []), k_k, k_a]
    types: list[tuple[Any, ...]]
    build: Any
    before = [k, v, first] if shared else [k, v]
    if stored is None:
        small = list(_normal(count, rows, width))
        ups, build = _double(*small), partial(gates.gates, size=size, shared=shared)
        types = [("t", width, F32)] * count
    else:
        hidden = [_normal(rows, rank, dtype=F16) for rank in ranks]
        weights = [_weight(stored, width, rank) for rank in ranks]
        pairs = list(zip(hidden, weights, strict=True))
        ups = [x.astype(np.float64) @ dense.T for x, (_, dense) in pairs]
        small = [*hidden, *(tensor for tensors, _ in weights for tensor in tensors)]
        types = [(1, rank, F16) for rank in ranks]
        types += [spec for rank in ranks for spec in _pair(stored, width, rank)]
        inside = partial(gates.gates_of_hidden, size=size, shared=shared)
        build = told(inside, *[stored] * count)
    token = ("t" if stored is None else 1, width, F32)
    k64, v64, *exactly = _double(k, v, k_k, k_a)
    a = formulas.sigmoid(a0 + ups[1])
    w = np.exp(-rwkv7.DECAY_RATE * formulas.sigmoid(w0 + ups[0]))
    written, removed, replaced = partial(rwkv7.keys, head_size=size)(k64, a, *exactly)
    value = [v64 + (first - v64) * formulas.sigmoid(v0 + ups[3])] if shared else []
    exact = [w, written, *value, removed, replaced, ups[2]]
    return Entry(
        build,
        [*[token] * len(before), *types, *[(width, F32)] * len(vectors)],
        [token] * len(exact),
        [*before, *small, *vectors],
        exact,
        BEHIND,
    )


def _step(version: str, size: int, orders: int) -> Entry:
    """A step of each sequence by head, in the pool."""
    batch, width = len(SLOTS), 2 * size
    state = _normal(batch, size, width)
    pool = np.full((PLACES, LAYERS, size + 2, width), np.nan, F32)
    pool[SLOTS[:, 0], 1, 1:-1] = state
    ends, gate = np.arange(batch + 1), _normal(batch, width)
    weight, bias = norm = _normal(2, width)
    r, k, v = _normal(3, batch, width)
    token, vector = ("b", width, F32), (width, F32)
    types: list[tuple[Any, ...]]
    build: Any
    keep: dict[str, Any] = {"size": size, "eps": EPS}
    if version == "7":
        w, kk, b = RNG.uniform(0.5, 1, (3, batch, width)).astype(F32) * [[[1]], [[0.1]], [[0.1]]]
        given = [x.astype(F32) for x in (r, w, k, v, kk, b)]
        y, after = partial(rwkv7.wkv, offsets=ends)(*_double(*given, state))
        r_k = _normal(2, size)
        y = head_end.reference(y, _double(r, k, v, r_k), weight, bias, gate, size, EPS)
        given.append(r_k)
        types, build = [*[token] * 6, (2, size, F32)], partial(step7, **keep)
    else:
        # RWKV-5's decay is a channel's, RWKV-6's a token's.
        w = RNG.uniform(0.1, 1, width if version == "5" else (batch, width)).astype(F32)
        u = _normal(width)
        y, after = partial(rwkv5.wkv, offsets=ends)(*_double(r, w, k, v, u, state))
        y = head_end.reference(y, None, weight, bias, gate, size, EPS, silu=True)
        given = [r, k, v, w, u]
        types = [*[token] * 3, vector if version == "5" else token, vector]
        build = partial(step5, **keep, gate=True)
    wanted = pool.astype(np.float64)
    wanted[SLOTS[:, 1], 1, 1:-1] = after
    places = [("s", LAYERS, size + 2, width, F32), ("b", 2, "int32")]
    return Entry(
        build,
        [*types, vector, vector, token, *places],
        [token],
        [*given, *norm, gate, pool, SLOTS, 1, 1],
        [y],
        BEHIND,
        wanted,
        orders,
    )


def _end(size: int, *, bonus: bool, gate: bool) -> Entry:
    """What follows a prompt's recurrence: with a gate alone, under a silu, as RWKV-5's."""
    heads, rows = 2, 5
    width, silu = heads * size, not bonus
    y, r, k, v, g = _normal(5, rows, width)
    r_k, (weight, bias) = _normal(heads, size), _normal(2, width)
    added = [r, k, v, r_k] if bonus else []
    gates_given, token = [g] if gate else [], ("t", width, F32)
    exact = head_end.reference(
        *(y.astype(np.float64), _double(*added) or None, weight, bias),
        *(g.astype(np.float64) if gate else None, size, EPS),
        silu=silu,
    )
    return Entry(
        partial(head_end.head_end, size=size, eps=EPS, bonus=bonus, gate=gate, silu=silu),
        [token, *([*[token] * 3, (heads, size, F32)] if bonus else []), *[(width, F32)] * 2]
        + [token] * gate,
        [token],
        [y, *added, weight, bias, *gates_given],
        [exact],
        BEHIND,
    )


ENTRIES = {
    # As many as versions have, of channels that do and do not fill their threads.
    "blends_6": _blends(6, 64, None, of_previous=True),
    "blends_2": _blends(2, 40, None, of_previous=False),
    "blends_wide": _blends(1, 1100, None, of_previous=True, orders=3),
    "blends_prompt": _blends(4, 64, [1, 5, 2], of_previous=False),
    "blends_prompt_previous": _blends(6, 72, [3, 1, 4], of_previous=True),
    "several_rows": _several(SEVERAL, 1, 50),
    "several_rows_plain": _several(PLAIN_ONES, 1, 50),
    "several 3": _several(TILES, 3, 50),
    "several 20": _several(TILES, 20, 10),
    "several 70": _several(TILES, 70, 3),
    "several_plain": _several(PLAIN_ONES, 18, 10),
    **_ended(),
    "gates": _gates(64, 3, shared=True),
    "gates_first": _gates(48, 3, shared=False),
    "gates_q8": _gates(64, 1, shared=True, stored=Q8),
    "gates_q4": _gates(32, 1, shared=True, stored=Q4),
    "gates_plain_first": _gates(16, 1, shared=False, stored=PLAIN),
    "step_5": _step("5", 16, 50),
    "step_6": _step("6", 32, 50),
    "step_7": _step("7", 32, 50),
    "step_7_published": _step("7", 64, 3),
    "end_7": _end(64, bonus=True, gate=True),
    "end_5": _end(16, bonus=False, gate=True),
    "end_5_0": _end(48, bonus=False, gate=False),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Array]]:
    # What has the same name but for a number of rows is one kernel.
    cases: dict[str, Case] = {
        name.partition(" ")[0]: (entry.build, entry.types, entry.outs)
        for name, entry in ENTRIES.items()
    }
    calls = [
        (name.partition(" ")[0], (entry.given, [(value.shape, F32) for value in entry.exact]))
        for name, entry in ENTRIES.items()
    ]
    orders = [entry.orders for entry in ENTRIES.values()]
    found = cuda_emulation.run("emulated:compute_in_orders", cases, calls, orders)
    return dict(zip(ENTRIES, found, strict=True))


@pytest.mark.parametrize("name", ENTRIES)
def test_any_order(answers: dict[str, list[Array]], name: str) -> None:
    entry, found = ENTRIES[name], answers[name]
    count = len(entry.exact)
    for got, wanted in zip(found[:count], entry.exact, strict=True):
        assert error_ratio(got, wanted) < entry.near
    if entry.pool is not None:
        # The pool is the last array but one that the kernel was given.
        after, known = found[-2], np.isfinite(entry.pool)
        np.testing.assert_array_equal(np.isfinite(after), known)
        assert error_ratio(after[known], entry.pool[known]) < entry.near
