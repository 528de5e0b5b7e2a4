"""RWKV-5's and 6's kernels by head, over ragged batches and by single steps, against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.versions.rwkv5 import heads, reference, wkv

pytestmark = pytest.mark.slow

RATIO = 2e-6
# Channels and channels of a head: as published, vectors of other lengths, and none.
SHAPES = [(128, 64), (96, 32), (24, 12), (15, 5)]
LENGTHS = [1, 3, 40, 2]
LAYERS, PLACES = 2, 9
EPS = 64e-5
F32 = "float32"
FIXED = pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "of_token"])
SHAPED = pytest.mark.parametrize("width, size", SHAPES)


def _recurrence(width: int, size: int, *, fixed: bool, step: bool, pooled: bool) -> Case:
    """A token's vectors, the bonus, offsets where it is no step, and the state in either form."""
    token, vector, batch = ("b" if step else "t", width, F32), (width, F32), "b"
    args: list[tuple[object, ...]] = [token, token, token, vector if fixed else token, vector]
    if not step:
        args.append(("offsets", "int32"))
    if not pooled:
        state = (batch, size, width, F32)
        return wkv.wkv, [*args, state], [token, state]
    args += [("s", LAYERS, size + 2, width, F32), (batch, 2, "int32")]
    return partial(wkv.wkv_pooled, size=size), args, [token]


CASES: dict[str, Case] = {
    f"{name}_{fixed}_{width}": _recurrence(width, size, fixed=fixed, step=step, pooled=pooled)
    for width, size in SHAPES
    for fixed in (True, False)
    for name, step, pooled in (
        ("whole", False, False),
        ("step", True, False),
        ("pooled", False, True),
        ("pooled_step", True, True),
    )
}
CASES |= {
    f"head_norm_{width}": (
        partial(heads.head_norm, size=size, eps=EPS),
        [("t", width, F32), (width, F32), (width, F32)],
        [("t", width, F32)],
    )
    for width, size in SHAPES
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


def _inputs(width: int, size: int, *, fixed: bool) -> tuple[list[Array], Array]:
    """r, k, v, w and u, and a state of which some sequences are fresh and some are not."""
    rng = np.random.default_rng(width)
    tokens, batch = sum(LENGTHS), len(LENGTHS)
    r, k, v = rng.normal(0, 1, (3, tokens, width))
    w = np.exp(-np.exp(rng.normal(-2, 1.5, width if fixed else (tokens, width))))
    state = rng.normal(0, 1, (batch, size, width))
    state[0] = state[2] = 0
    inputs = (r, k, v, w, rng.normal(0, 0.5, width))
    return [x.astype(np.float32) for x in inputs], state.astype(np.float32)


def _exact(inputs: list[Array], state: Array, offsets: Array) -> tuple[Array, Array]:
    r, k, v, w, u, given = (x.astype(np.float64) for x in (*inputs, state))
    return reference.wkv(r, w, k, v, u, given, offsets)


def _tokens(inputs: list[Array], which: slice) -> list[Array]:
    """The inputs of some tokens; what is each token's has two axes."""
    return [x[which] if x.ndim == 2 else x for x in inputs]


@FIXED
@SHAPED
def test_recurrence(kernels: Kernels, width: int, size: int, fixed: bool) -> None:
    inputs, state = _inputs(width, size, fixed=fixed)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int32)
    expected = _exact(inputs, state, offsets)
    outs = [(inputs[0].shape, F32), (state.shape, F32)]
    found = kernels(f"whole_{fixed}_{width}", *inputs, offsets, state, outs=outs)
    for result, exact in zip(found, expected, strict=True):
        assert error_ratio(result, exact) < RATIO
    # Token by token, each sequence alone: the same bits.
    for s, (begin, end) in enumerate(pairwise(offsets)):
        rows = state[s : s + 1]
        for t in range(begin, end):
            shapes = [((1, width), F32), (rows.shape, F32)]
            token = _tokens(inputs, slice(t, t + 1))
            y, rows = kernels(f"step_{fixed}_{width}", *token, rows, outs=shapes)
            np.testing.assert_array_equal(y[0], found[0][t])
        np.testing.assert_array_equal(rows[0], found[1][s])


@FIXED
@SHAPED
def test_recurrence_in_the_pool(kernels: Kernels, width: int, size: int, fixed: bool) -> None:
    """What is read stays; of what is written, the rows of one layer; all else stays NaN."""
    inputs, state = _inputs(width, size, fixed=fixed)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int32)
    outs = [(inputs[0].shape, F32), (state.shape, F32)]
    y, after = kernels(f"whole_{fixed}_{width}", *inputs, offsets, state, outs=outs)
    # The last sequence writes the slot that it reads.
    slots = np.array([[3, 1], [0, 2], [5, 8], [4, 4]], np.int32)
    for name, layer in (("pooled", 1), ("pooled_step", 0)):
        given, ends = inputs, [offsets]
        if name == "pooled_step":
            given, ends = _tokens(inputs, slice(len(slots))), []
            shapes = [(given[0].shape, F32), (state.shape, F32)]
            y, after = kernels(f"step_{fixed}_{width}", *given, state, outs=shapes)
        pool = np.full((PLACES, LAYERS, size + 2, width), np.nan, np.float32)
        pool[slots[:, 0], layer, 1:-1] = state
        expected = pool.copy()
        expected[slots[:, 1], layer, 1:-1] = after
        out, changed = kernels.with_pool(
            f"{name}_{fixed}_{width}",
            [*given, *ends],
            pool,
            slots,
            layer,
            1,
            out=(given[0].shape, F32),
        )
        np.testing.assert_array_equal(out, y)
        np.testing.assert_array_equal(changed, expected)


@SHAPED
def test_head_norm(kernels: Kernels, width: int, size: int) -> None:
    rng = np.random.default_rng(2)
    # A mean far from zero, which a variance from squares alone would drown in.
    y = rng.normal(300, 1, (5, width)).astype(np.float32)
    y[2] = 0
    weight, bias = rng.normal(1, 0.2, (2, width)).astype(np.float32)
    (found,) = kernels(f"head_norm_{width}", y, weight, bias, outs=[(y.shape, F32)])
    exact = partial(formulas.head_norm, size=size, eps=EPS)(
        *(x.astype(np.float64) for x in (y, weight, bias))
    )
    # The inputs themselves are known to float32's step at 300.
    assert error_ratio(found, exact) < 3e-5
