"""Kernels that gather, move or normalize rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
from compiling import Case, Kernels, error_ratio, poisoned, specs, told

from mlc_rwkv_world.kernels.common import embedding, layer_norm, state, token_shift
from mlc_rwkv_world.stock.kernels import offsets
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

F32, F16 = "float32", "float16"
VOCAB = 40
LAYER_NORM_RATIO = 3e-7
# The mean of a row at 1000 costs ten bits of the centred values.
SHIFTED_LAYER_NORM_RATIO = 1e-4
BATCH, LAYERS, ROWS = 3, 2, 5
NORM_WIDTHS = [64, 50, 7]
LENGTHS = [1, 5, 2]
OFFSETS = np.cumsum([0, *LENGTHS]).astype(np.int32)


def _embedding(stored: Stored, width: int) -> Case:
    weight = specs(stored, VOCAB, width)
    return told(embedding.embedding, stored), [*weight, ("t", "int32")], [("t", width, F32)]


def _norm(width: int, count: int | str = "t") -> Case:
    rows = (count, width, F32)
    return partial(layer_norm.layer_norm, eps=1e-5), [rows, (width, F32), (width, F32)], [rows]


def _shift(width: int, dtype: str) -> Case:
    x, last = ("t", width, dtype), ("b", width, dtype)
    return token_shift.token_shift, [x, last, ("o", "int32")], [x]


def _last(width: int, dtype: str) -> Case:
    return token_shift.last_token, [("t", width, dtype), ("o", "int32")], [("b", width, dtype)]


STATE = (LAYERS, ROWS, 48, F32)
QUANTIZED = [
    Stored.symmetric(bits, scale, group)
    for bits in (4, 8)
    for scale in (F32, F16)
    for group in (32, 0)
]
CASES: dict[str, Case] = {
    f"embedding_{dtype}": _embedding(Stored(0, dtype), 50) for dtype in (F32, F16)
}
CASES |= {f"embedding_{i}": _embedding(stored, 96) for i, stored in enumerate(QUANTIZED)}
CASES |= {f"layer_norm_{width}": _norm(width) for width in NORM_WIDTHS}
# A known, small count of rows is not shared out over threads.
CASES |= {f"layer_norm_one_{width}": _norm(width, 1) for width in NORM_WIDTHS[:2]}
CASES |= {f"shift_{w}_{d}": _shift(w, d) for w, d in ((64, F32), (64, F16), (7, F32))}
CASES |= {f"last_{w}_{d}": _last(w, d) for w, d in ((64, F32), (64, F16), (7, F32))}
CASES |= {
    "whole_offsets": (offsets.whole_offsets, [("t", 8, F32)], [(2, "int32")]),
    "offsets_from_positions": (
        offsets.offsets_from_positions,
        [("b", "int32")],
        [("o", "int32")],
    ),
}
POOL = ("s", *STATE)
CASES |= {
    f"state_get_{b}": (state.state_get, [POOL, (b, 2, "int32")], [(b, 48, F32)]) for b in ("b", 1)
}
CASES |= {
    f"state_get_rows_{b}": (state.state_get, [POOL, (b, 2, "int32")], [(b, 3, 48, F32)])
    for b in ("b", 1)
}
CASES |= {
    f"state_set_rows_{b}": (state.state_set, [POOL, (b, 2, "int32"), (b, 3, 48, F32)], [])
    for b in ("b", 1)
}
CASES |= {
    f"state_set_{b}": (state.state_set, [POOL, (b, 2, "int32"), (b, 48, F32)], []) for b in ("b", 1)
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 17])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_embedding_copies_rows(
    kernels: Kernels, rng: np.random.Generator, dtype: str, count: int
) -> None:
    weight = rng.standard_normal((VOCAB, 50)).astype(dtype)
    ids = rng.integers(0, VOCAB, count, np.int32)
    ids[-1] = VOCAB - 1
    (rows,) = kernels(f"embedding_{dtype}", weight, ids, outs=[((count, 50), F32)])
    np.testing.assert_array_equal(rows, embedding.reference(weight, ids))


@pytest.mark.parametrize("stored", QUANTIZED, ids=str)
def test_quantized_embedding(kernels: Kernels, rng: np.random.Generator, stored: Stored) -> None:
    tensors = quantize(rng.standard_normal((VOCAB, 96), np.float32), stored)
    ids = rng.permutation(VOCAB).astype(np.int32)
    outs = [((VOCAB, 96), F32)]
    (rows,) = kernels(f"embedding_{QUANTIZED.index(stored)}", *tensors, ids, outs=outs)
    # One product of an integer and a scale, rounded once: the same everywhere.
    np.testing.assert_array_equal(rows, dequantize(tensors, stored)[ids])


@pytest.mark.parametrize("shift, ratio", [(0, LAYER_NORM_RATIO), (1e3, SHIFTED_LAYER_NORM_RATIO)])
@pytest.mark.parametrize("width", NORM_WIDTHS)
def test_layer_norm(
    kernels: Kernels, rng: np.random.Generator, width: int, shift: float, ratio: float
) -> None:
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in ((9, width), width, width))
    x += np.float32(shift)
    exact = partial(layer_norm.reference, eps=1e-5)(
        *(a.astype(np.float64) for a in (x, weight, bias))
    )
    (y,) = kernels(f"layer_norm_{width}", x, weight, bias, outs=[(x.shape, F32)])
    assert error_ratio(y, exact) < ratio
    if f"layer_norm_one_{width}" in CASES:
        outs = [((1, width), F32)]
        (one,) = kernels(f"layer_norm_one_{width}", x[:1], weight, bias, outs=outs)
        np.testing.assert_array_equal(one, y[:1])


def test_layer_norm_of_equal_values_is_the_bias(kernels: Kernels) -> None:
    x, bias = np.full((2, 64), 0.1, F32), np.arange(64, dtype=F32)
    (y,) = kernels("layer_norm_64", x, np.ones(64, F32), bias, outs=[(x.shape, F32)])
    np.testing.assert_allclose(y, [bias, bias], atol=1e-5)


@pytest.mark.parametrize("width, dtype", [(64, F32), (64, F16), (7, F32)])
def test_token_shift_and_last_token(
    kernels: Kernels, rng: np.random.Generator, width: int, dtype: str
) -> None:
    x = rng.standard_normal((int(OFFSETS[-1]), width)).astype(dtype)
    last = rng.standard_normal((len(LENGTHS), width)).astype(dtype)
    (shifted,) = kernels(f"shift_{width}_{dtype}", x, last, OFFSETS, outs=[(x.shape, dtype)])
    np.testing.assert_array_equal(shifted, token_shift.reference(x, last, OFFSETS))
    (ends,) = kernels(f"last_{width}_{dtype}", x, OFFSETS, outs=[(last.shape, dtype)])
    np.testing.assert_array_equal(ends, x[OFFSETS[1:] - 1])


def test_offsets(kernels: Kernels) -> None:
    (whole,) = kernels("whole_offsets", poisoned((13, 8), F32), outs=[((2,), "int32")])
    assert whole.tolist() == [0, 13]
    positions = OFFSETS[1:] - 1
    (found,) = kernels("offsets_from_positions", positions, outs=[((4,), "int32")])
    assert found.tolist() == OFFSETS.tolist()


@pytest.mark.parametrize("name, batch", [("b", BATCH), ("1", 1)])
def test_state_rows_are_read_and_written_where_they_belong(
    kernels: Kernels, rng: np.random.Generator, name: str, batch: int
) -> None:
    pool = rng.standard_normal((2 * batch + 1, LAYERS, ROWS, 48), np.float32)
    slots = rng.permutation(2 * batch + 1)[: 2 * batch].reshape(batch, 2).astype(np.int32)
    (row,) = kernels(f"state_get_{name}", pool, slots, 1, 3, outs=[((batch, 48), F32)])
    np.testing.assert_array_equal(row, pool[slots[:, 0], 1, 3])

    written = kernels.in_place(f"state_set_{name}", pool, slots, 1, 3, 2 * row)
    pool[slots[:, 1], 1, 3] = 2 * row
    np.testing.assert_array_equal(written, pool)

    (rows,) = kernels(f"state_get_rows_{name}", pool, slots, 0, 1, outs=[((batch, 3, 48), F32)])
    np.testing.assert_array_equal(rows, pool[slots[:, 0], 0, 1:4])
    written = kernels.in_place(f"state_set_rows_{name}", pool, slots, 0, 1, 2 * rows)
    pool[slots[:, 1], 0, 1:4] = 2 * rows
    np.testing.assert_array_equal(written, pool)
