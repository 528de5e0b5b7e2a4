"""CUDA's kernels in many orders of threads and blocks: the same bits, and near float64.

Those of products are in test_kernels_cuda.py too, in many shapes and one order; those of heads'
matrices in test_kernels_cuda_heads.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from compiling import Array, Case, error_ratio, specs, told
from support import cuda_emulation

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.common import state as states
from mlc_rwkv_world.kernels.cuda import matvec
from mlc_rwkv_world.kernels.linear import linear
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize
from mlc_rwkv_world.versions.rwkv4.cuda.time_mix import time_mix_step
from mlc_rwkv_world.versions.rwkv4.cuda.wkv import wkv
from mlc_rwkv_world.versions.rwkv5 import heads as heads5
from mlc_rwkv_world.versions.rwkv7 import heads as heads7
from mlc_rwkv_world.versions.rwkv7 import reference as rwkv7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

ORDERS = 50
F16, F32 = "float16", "float32"
Q4 = Stored.symmetric(4, F16, group=32)
# Channels: the least that four bits are streamed for; of kernels that go by head, or by channel.
K, N, D, HEAD = 256, 20, 64, 32
LENGTHS = np.array([0, 1, 38, 41], np.int32)
SLOTS = np.array([[0, 1], [2, 3], [4, 4]], np.int32)
EPS = 1e-5
# A float32 result of float16 and 4-bit products; of an exponential behind them.
NEAR, BEHIND = 1e-6, 5e-6

RNG = np.random.default_rng(7)


def _normal(*shape: int, dtype: str = F32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def _weight(n: int = N, k: int = K) -> tuple[list[Array], Array]:
    stored = quantize(_normal(n, k) * np.float32(k**-0.5), Q4)
    return stored, dequantize(stored, Q4).astype(np.float64)


def _double(*arrays: Array) -> list[Array]:
    return [a.astype(np.float64) for a in arrays]


# A builder, types of arguments and results, arguments, exact results, and their greatest error.
Entry = tuple[Any, list[Any], list[Any], list[Any], list[Array], float]


def _products() -> dict[str, Entry]:
    """Of one row, with what follows them, and of several."""
    x, residual = _normal(1, K, dtype=F16), _normal(1, N, dtype=F16)
    (w, dense), (w1, dense1), (w2, dense2) = (_weight() for _ in range(3))
    p, p1, p2 = (x.astype(np.float64) @ d.T for d in (dense, dense1, dense2))
    row, weight, out, old = (1, K, F16), specs(Q4, N, K), [(1, N, F32)], (1, N, F16)
    gated = 0.5 * (residual + formulas.sigmoid(p1) * p)
    one = [x, *w, residual]
    entries: dict[str, Entry] = {
        "add": (told(matvec.matvec_add, Q4), [row, *weight, old], out, one, [residual + p], NEAR),
        "relu_square": (
            *(told(matvec.matvec_relu_square, Q4), [row, *weight], out, [x, *w]),
            *([np.maximum(p, 0) ** 2], NEAR),
        ),
        "gated_add": (
            *(told(partial(matvec.matvec_gated_add, factor=0.5), Q4, Q4),),
            *([row, *weight, row, *weight, old], out, [x, *w, x, *w1, residual], [gated], NEAR),
        ),
    }
    for rows in (5, 20, 70):
        xs = _normal(rows, K, dtype=F16)
        exact = xs.astype(np.float64) @ dense.T
        types = [("rows", K, F16), *weight]
        # Four-bit values are rounded to float16 once they are scaled.
        entries[f"tile_{rows}"] = (
            told(linear, Q4),
            types,
            [("rows", N, F32)],
            [xs, *w],
            [exact],
            5e-4,
        )
    decay, first = RNG.uniform(-6, 1, N).astype(F32), _normal(N)
    pool = _normal(5, 2, 5, N)
    place = np.array([[3, 1]], np.int32)
    a, b, q = pool[3, 1, 1:4].astype(np.float64)
    top = np.maximum(q, first + p)
    share, new = np.exp(q - top), np.exp(first + p - top)
    y = formulas.sigmoid(p2) * (share * a + new * p1) / (share * b + new)
    types = [row] * 3 + weight * 3 + [(N, F32)] * 2 + [("s", 2, 5, N, F32), (1, 2, "int32")]
    given = [x, x, x, *w, *w1, *w2, decay, first, pool, place, 1]
    build = told(time_mix_step, Q4, Q4, Q4)
    entries["time_mix"] = (build, types, out, given, [y], BEHIND)
    return entries


def _state_get() -> Entry:
    pool = _normal(6, 2, 5, D)
    read = pool[SLOTS[:, 0], 1, 2].astype(np.float64)
    at = [("s", 2, 5, D, F32), ("b", 2, "int32")]
    return states.state_get, at, [("b", D, F32)], [pool, SLOTS, 1, 2], [read], 0


def _prompt() -> Entry:
    """RWKV-4's recurrence over a ragged batch."""
    count, batch = int(LENGTHS[-1]), len(LENGTHS) - 1
    k, v = _normal(2, count, D)
    w, u = -np.exp(RNG.uniform(-6, 1, D)).astype(F32), _normal(D)
    old = np.abs(_normal(batch, 3, D))
    y, after = np.empty((count, D)), old.astype(np.float64)
    for s in range(batch):
        a, b, p = after[s]
        for t in range(LENGTHS[s], LENGTHS[s + 1]):
            top = np.maximum(p, u + k[t].astype(np.float64))
            y[t] = (np.exp(p - top) * a + np.exp(u + k[t] - top) * v[t]) / (
                np.exp(p - top) * b + np.exp(u + k[t] - top)
            )
            top = np.maximum(p + w, k[t].astype(np.float64))
            a[:] = np.exp(p + w - top) * a + np.exp(k[t] - top) * v[t]
            b[:] = np.exp(p + w - top) * b + np.exp(k[t] - top)
            p[:] = top
    state, token = ("b", 3, D, F32), ("t", D, F32)
    types = [token, token, (D, F32), (D, F32), state, ("offsets", "int32")]
    return wkv, types, [token, state], [k, v, w, u, old, LENGTHS], [y, after], BEHIND


def _heads() -> dict[str, Entry]:
    """What goes by head before and after the recurrences of RWKV-5 to 7."""
    token, vector, matrix = ("t", D, F32), (D, F32), (D // HEAD, HEAD, F32)
    k, a, y, r, v = _normal(5, 6, D)
    k_k, k_a, weight, bias = _normal(4, D)
    r_k = _normal(D // HEAD, HEAD)
    keys = partial(rwkv7.keys, head_size=HEAD)(*_double(k, a, k_k, k_a))
    normal = partial(formulas.head_norm, size=HEAD, eps=EPS)(*_double(y, weight, bias))
    full = partial(rwkv7.head_norm, eps=EPS)(*_double(y, r, k, v, r_k, weight, bias))
    return {
        "keys": (
            *(partial(heads7.keys, size=HEAD), [token, token, vector, vector], [token] * 3),
            *([k, a, k_k, k_a], list(keys), BEHIND),
        ),
        "head_norm_5": (
            *(partial(heads5.head_norm, size=HEAD, eps=EPS), [token, vector, vector], [token]),
            *([y, weight, bias], [normal], BEHIND),
        ),
        "head_norm_7": (
            *(partial(heads7.head_norm, eps=EPS), [*[token] * 4, matrix, vector, vector], [token]),
            *([y, r, k, v, r_k, weight, bias], [full], BEHIND),
        ),
    }


ENTRIES = {**_products(), "state_get": _state_get(), "wkv": _prompt(), **_heads()}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Array]]:
    cases: dict[str, Case] = {name: entry[:3] for name, entry in ENTRIES.items()}
    calls = [
        (name, (inputs, [(value.shape, F32) for value in exact]))
        for name, (_, _, _, inputs, exact, _) in ENTRIES.items()
    ]
    found = cuda_emulation.run("emulated:compute_in_orders", cases, calls, [ORDERS] * len(calls))
    return dict(zip(ENTRIES, found, strict=True))


@pytest.mark.parametrize("name", ENTRIES)
def test_any_order(answers: dict[str, list[Array]], name: str) -> None:
    *_, exact, near = ENTRIES[name]
    for got, wanted in zip(answers[name], exact, strict=False):
        if near:
            assert error_ratio(got, wanted) < near
        else:
            np.testing.assert_array_equal(got, wanted)
