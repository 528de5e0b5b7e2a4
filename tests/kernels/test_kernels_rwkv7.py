"""RWKV-7's kernels by head, over ragged batches and by single steps, against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio

from mlc_rwkv_world.versions.rwkv7 import heads, reference, wkv

pytestmark = pytest.mark.slow

RATIO = 2e-6
# Channels and channels of a head: as published, vectors of other lengths, and none.
SHAPES = [(128, 64), (96, 32), (24, 12), (15, 5)]
LENGTHS = [1, 3, 40, 2]
LAYERS, PLACES = 2, 9
EPS = 64e-5
F32 = "float32"


def _recurrence(width: int, size: int, *, step: bool, pooled: bool) -> Case:
    """Six vectors of a token, offsets where it is no step, and the state in either form."""
    token, batch = ("b" if step else "t", width, F32), "b"
    args: list[tuple[object, ...]] = [token] * 6
    if not step:
        args.append(("offsets", "int32"))
    if not pooled:
        state = (batch, size, width, F32)
        return wkv.wkv, [*args, state], [token, state]
    args += [("s", LAYERS, size + 2, width, F32), (batch, 2, "int32")]
    return partial(wkv.wkv_pooled, size=size), args, [token]


def _by_head(width: int, size: int) -> dict[str, Case]:
    token, vector, matrix = ("t", width, F32), (width, F32), (width // size, size, F32)
    args = [token, token, token, token, matrix, vector, vector]
    return {
        "keys": (partial(heads.keys, size=size), [token, token, vector, vector], [token] * 3),
        "head_norm": (partial(heads.head_norm, eps=EPS), args, [token]),
    }


CASES: dict[str, Case] = {
    f"{name}_{width}": case
    for width, size in SHAPES
    for name, case in {
        "whole": _recurrence(width, size, step=False, pooled=False),
        "step": _recurrence(width, size, step=True, pooled=False),
        "pooled": _recurrence(width, size, step=False, pooled=True),
        "pooled_step": _recurrence(width, size, step=True, pooled=True),
        **_by_head(width, size),
    }.items()
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


def _inputs(width: int, size: int) -> tuple[list[Array], Array]:
    """r, w, k, v, kk and b, and a state of which some sequences are fresh and some are not."""
    rng = np.random.default_rng(width)
    tokens, batch = sum(LENGTHS), len(LENGTHS)
    r, k, v = rng.normal(0, 1, (3, tokens, width))
    w = np.exp(-reference.DECAY_RATE / (1 + np.exp(-rng.normal(0, 3, (tokens, width)))))
    a = 1 / (1 + np.exp(-rng.normal(0, 1, (tokens, width))))
    k, kk, b = reference.keys(k, a, np.full(width, 0.9), np.ones(width), size)
    state = rng.normal(0, 1, (batch, size, width))
    state[0] = state[2] = 0
    return [x.astype(np.float32) for x in (r, w, k, v, kk, b)], state.astype(np.float32)


def _exact(inputs: list[Array], state: Array, offsets: Array) -> tuple[Array, Array]:
    return reference.wkv(*[*(x.astype(np.float64) for x in (*inputs, state)), offsets])


@pytest.mark.parametrize("width, size", SHAPES)
def test_recurrence(kernels: Kernels, width: int, size: int) -> None:
    inputs, state = _inputs(width, size)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int32)
    expected = _exact(inputs, state, offsets)
    outs = [(inputs[0].shape, F32), (state.shape, F32)]
    found = kernels(f"whole_{width}", *inputs, offsets, state, outs=outs)
    for result, exact in zip(found, expected, strict=True):
        assert error_ratio(result, exact) < RATIO
    # Token by token, each sequence alone: the same bits.
    for s, (begin, end) in enumerate(pairwise(offsets)):
        rows = state[s : s + 1]
        for t in range(begin, end):
            token = [x[t : t + 1] for x in inputs]
            shapes = [((1, width), F32), (rows.shape, F32)]
            y, rows = kernels(f"step_{width}", *token, rows, outs=shapes)
            np.testing.assert_array_equal(y[0], found[0][t])
        np.testing.assert_array_equal(rows[0], found[1][s])


@pytest.mark.parametrize("width, size", SHAPES)
def test_recurrence_in_the_pool(kernels: Kernels, width: int, size: int) -> None:
    """What is read stays; of what is written, the rows of one layer; all else stays NaN."""
    inputs, state = _inputs(width, size)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int32)
    outs = [(inputs[0].shape, F32), (state.shape, F32)]
    y, after = kernels(f"whole_{width}", *inputs, offsets, state, outs=outs)
    # The last sequence writes the slot that it reads.
    slots = np.array([[3, 1], [0, 2], [5, 8], [4, 4]], np.int32)
    for name, layer in (("pooled", 1), ("pooled_step", 0)):
        given, ends, begun = inputs, [offsets], state
        if name == "pooled_step":
            given, ends = [x[: len(slots)] for x in inputs], []
            shapes = [(given[0].shape, F32), (state.shape, F32)]
            y, after = kernels(f"step_{width}", *given, begun, outs=shapes)
        pool = np.full((PLACES, LAYERS, size + 2, width), np.nan, np.float32)
        pool[slots[:, 0], layer, 1:-1] = begun
        expected = pool.copy()
        expected[slots[:, 1], layer, 1:-1] = after
        out, changed = kernels.with_pool(
            f"{name}_{width}", [*given, *ends], pool, slots, layer, 1, out=(given[0].shape, F32)
        )
        np.testing.assert_array_equal(out, y)
        np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("width, size", SHAPES)
def test_keys(kernels: Kernels, width: int, size: int) -> None:
    rng = np.random.default_rng(1)
    k, a = rng.normal(0, 2, (2, 7, width)).astype(np.float32)
    # A head whose key is zero is not stretched.
    k[3, :size] = 0
    k_k, k_a = rng.normal(0.9, 0.2, (2, width)).astype(np.float32)
    found = kernels(f"keys_{width}", k, a, k_k, k_a, outs=[(k.shape, F32)] * 3)
    exact = partial(reference.keys, head_size=size)(
        *(x.astype(np.float64) for x in (k, a, k_k, k_a))
    )
    for result, expected in zip(found, exact, strict=True):
        assert error_ratio(result, expected) < RATIO
    np.testing.assert_array_equal(found[1][3, :size], 0)


@pytest.mark.parametrize("width, size", SHAPES)
def test_head_norm(kernels: Kernels, width: int, size: int) -> None:
    rng = np.random.default_rng(2)
    # A mean far from zero, which a variance from squares alone would drown in.
    y = rng.normal(300, 1, (5, width)).astype(np.float32)
    y[2] = 0
    r, k, v = rng.normal(0, 1, (3, 5, width)).astype(np.float32)
    r_k = rng.normal(0, 0.2, (width // size, size)).astype(np.float32)
    weight, bias = rng.normal(1, 0.2, (2, width)).astype(np.float32)
    args = (y, r, k, v, r_k, weight, bias)
    (found,) = kernels(f"head_norm_{width}", *args, outs=[(y.shape, F32)])
    exact = partial(reference.head_norm, eps=EPS)(*(x.astype(np.float64) for x in args))
    # The inputs themselves are known to float32's step at 300.
    assert error_ratio(found, exact) < 3e-5
