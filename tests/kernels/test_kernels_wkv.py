"""The recurrence over ragged batches and by single steps, against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio

from mlc_rwkv_world.versions.rwkv4 import reference
from mlc_rwkv_world.versions.rwkv4.wkv import wkv, wkv_step

pytestmark = pytest.mark.slow

# By the spread of the exponents: those near 100 are themselves known to 4e-6 only.
RATIO = {1.0: 2e-6, 40.0: 1e-5}
WIDTHS = [64, 20, 7]
LENGTHS = [1, 3, 40, 2]
F32 = "float32"


def _step(width: int, batch: int | str = "b") -> Case:
    row, state = (batch, width, F32), (batch, 3, width, F32)
    return wkv_step, [row, row, (width, F32), (width, F32), state], [row, state]


def _whole(width: int) -> Case:
    tokens, state, vector = ("t", width, F32), ("b", 3, width, F32), (width, F32)
    args = [tokens, tokens, vector, vector, state, ("offsets", "int32")]
    return wkv, args, [tokens, state]


CASES: dict[str, Case] = {
    **{f"wkv_{width}": _whole(width) for width in WIDTHS},
    **{f"step_{width}": _step(width, 1) for width in WIDTHS},
    "steps_64": _step(64),
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


def _inputs(width: int, scale: float) -> list[Array]:
    """k, v, w, u and a state [B, 3, D] of which some sequences are fresh and some are not."""
    rng = np.random.default_rng(width)
    tokens, batch = sum(LENGTHS), len(LENGTHS)
    k = rng.normal(0, scale, (tokens, width))
    v = rng.normal(0, 1, (tokens, width))
    w = -np.exp(np.linspace(-6, 3, width))
    u = rng.normal(0, scale, width)
    a, b, p = rng.normal(0, 1, (3, batch, width))
    b, p = np.abs(b) + 0.5, p * scale
    for fresh in (0, 2):
        a[fresh], b[fresh], p[fresh] = 0, 0, -1e30
    return [x.astype(np.float32) for x in (k, v, w, u, np.stack([a, b, p], axis=1))]


@pytest.mark.parametrize("scale", RATIO)
@pytest.mark.parametrize("width", WIDTHS)
def test_recurrence(kernels: Kernels, width: int, scale: float) -> None:
    inputs = _inputs(width, scale)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int32)
    outs = [((int(offsets[-1]), width), F32), ((len(LENGTHS), 3, width), F32)]
    y, after = kernels(f"wkv_{width}", *inputs, offsets, outs=outs)
    k, v, w, u, state = (x.astype(np.float64) for x in inputs)
    a, b, p = np.moveaxis(state, 1, 0)
    expected = reference.wkv(k, v, w, u, a, b, p, offsets)
    for result, exact in zip((y, *np.moveaxis(after, 1, 0)), expected, strict=True):
        assert error_ratio(result, exact) < RATIO[scale]

    k, v, w, u, state = inputs
    steps = [((1, width), F32), ((1, 3, width), F32)]
    for s, (begin, end) in enumerate(pairwise(offsets)):
        rows = state[s : s + 1]
        for t in range(begin, end):
            y, rows = kernels(f"step_{width}", k[t, None], v[t, None], w, u, rows, outs=steps)
            assert error_ratio(y, expected[0][t]) < RATIO[scale]
        for result, exact in zip(rows[0], expected[1:], strict=True):
            assert error_ratio(result, exact[s]) < RATIO[scale]


@pytest.mark.parametrize("name", ["wkv_64", "steps_64"])
def test_first_token_of_a_fresh_state_is_its_value(kernels: Kernels, name: str) -> None:
    """Even where e^k would be infinite in float32, or zero."""
    k = np.repeat(np.array([[-300.0], [0.0], [300.0]], np.float32), 64, axis=1)
    v = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    w, u = np.full(64, -0.5, F32), np.full(64, 3.0, F32)
    state = np.zeros((3, 3, 64), F32)
    state[:, 2] = -1e30
    offsets = [np.arange(4, dtype=np.int32)] if name == "wkv_64" else []
    outs = [((3, 64), F32), ((3, 3, 64), F32)]
    y, after = kernels(name, k, v, w, u, state, *offsets, outs=outs)
    a, b, p = np.moveaxis(after, 1, 0)
    np.testing.assert_array_equal(y, v)
    np.testing.assert_array_equal(a, v)
    np.testing.assert_array_equal(b, 1)
    np.testing.assert_array_equal(p, k)
