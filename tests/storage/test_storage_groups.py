"""Group quantization against a reference that looks at one value at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mlc_rwkv_world.storage import Stored, groups
from mlc_rwkv_world.storage.groups import dequantize, quantize

Array = np.ndarray
SCALES = ["float16", "float32"]
GROUP_SIZE = 32


def how(bits: int, scale_dtype: str) -> Stored:
    return Stored.symmetric(bits, scale_dtype, GROUP_SIZE)


@pytest.fixture(params=[4, 8])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def weight() -> Array:
    """Nine rows of three groups, whose magnitudes differ by ten orders."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 3, GROUP_SIZE)) * 10.0 ** rng.integers(-6, 4, (9, 3, 1))
    return values.reshape(9, 96).astype(np.float32)


def naive(weight: Array, bits: int, scale_dtype: str) -> tuple[list[list[int]], list[list[float]]]:
    """Words as Python integers, and scales, value by value."""
    largest = 2 ** (bits - 1) - 1
    words, scales = [], []
    for row in weight:
        row_words, row_scales = [0] * (len(row) * bits // 32), []
        for begin in range(0, len(row), GROUP_SIZE):
            values = row[begin : begin + GROUP_SIZE]
            scale = np.float32(max(abs(values)) / np.float32(largest)).astype(scale_dtype)
            row_scales.append(float(scale))
            for k, value in enumerate(values, begin):
                steps = round(float(value / np.float32(scale))) if scale else 0
                stored = min(max(steps, -largest), largest) + largest
                row_words[k * bits // 32] |= stored << (k * bits % 32)
        words.append(row_words)
        scales.append(row_scales)
    return words, scales


@pytest.mark.parametrize("scale_dtype", SCALES)
def test_layout_is_the_naive_one(weight: Array, bits: int, scale_dtype: str) -> None:
    words, scales = quantize(weight, how(bits, scale_dtype))
    assert (words.dtype, scales.dtype) == (np.dtype(np.uint32), np.dtype(scale_dtype))
    assert (words.tolist(), scales.tolist()) == naive(weight, bits, scale_dtype)


def test_a_word_by_hand() -> None:
    """Values 0, 1, -1, 2, ... of scale 1 in words of eight nibbles, the first one lowest."""
    row = np.zeros((1, 32), np.float32)
    row[0, :8] = [7, 0, 1, -1, 2, -2, -7, 3]
    words, scales = quantize(row, how(4, "float16"))
    assert scales.tolist() == [[1.0]]
    assert [f"{word:08x}" for word in words[0]] == ["a059687e", *["77777777"] * 3]


@pytest.mark.parametrize("scale_dtype", SCALES)
def test_values_come_back_within_half_a_step(weight: Array, bits: int, scale_dtype: str) -> None:
    words, scales = quantize(weight, how(bits, scale_dtype))
    back = dequantize([words, scales], how(bits, scale_dtype))
    assert back.dtype == np.float32
    largest = 2 ** (bits - 1) - 1
    steps = np.repeat(scales.astype(np.float64), GROUP_SIZE, axis=1)
    # A scale that was rounded down cuts the largest values off by what it lost.
    lost = 2.0**-11 * largest if scale_dtype == "float16" else 1e-6
    normal = steps >= np.finfo(scale_dtype).tiny
    assert normal.mean() > 0.5
    assert (np.abs(back - weight) <= steps * (0.5 + lost))[normal].all()


def test_what_was_dequantized_is_quantized_without_loss(weight: Array, bits: int) -> None:
    """Where every scale is a power of two, and so exact in any type."""
    rng = np.random.default_rng(1)
    largest = 2 ** (bits - 1) - 1
    values = rng.integers(-largest, largest + 1, (4, 2, GROUP_SIZE))
    values[:, :, 0] = largest
    exact = (values * 2.0 ** rng.integers(-10, 5, (4, 2, 1))).reshape(4, 64).astype(np.float32)
    for scale_dtype in SCALES:
        stored = how(bits, scale_dtype)
        back = dequantize(quantize(exact, stored), stored)
        np.testing.assert_array_equal(back, exact)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_value_of_either_sign_is_kept(bits: int, sign: int) -> None:
    row = np.linspace(-0.5, 0.5, GROUP_SIZE, dtype=np.float32)[None]
    row[0, 5] = sign * 3.0
    tensors = quantize(row, how(bits, "float32"))
    words, _ = tensors
    field = int(words[0, 5 * bits // 32]) >> (5 * bits % 32) & (2**bits - 1)
    assert field == (2**bits - 2 if sign == 1 else 0)
    np.testing.assert_allclose(
        dequantize(tensors, how(bits, "float32"))[0, 5], sign * 3.0, rtol=1e-6
    )


@pytest.mark.parametrize("scale_dtype", SCALES)
def test_zeros_and_tiny_groups_give_neither_nan_nor_a_warning(bits: int, scale_dtype: str) -> None:
    row = np.zeros((1, 4 * GROUP_SIZE), np.float32)
    smallest = float(np.finfo(np.float16).smallest_subnormal)
    row[0, GROUP_SIZE] = 1e-45  # a float32 subnormal: its scale is zero
    row[0, 2 * GROUP_SIZE] = -smallest / 8
    row[0, 3 * GROUP_SIZE] = smallest * 3 * (2 ** (bits - 1) - 1)  # a subnormal float16 scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words, scales = quantize(row, how(bits, scale_dtype))
        back = dequantize([words, scales], how(bits, scale_dtype))
    assert np.isfinite(scales).all()
    assert np.isfinite(back).all()
    assert (back[0, :GROUP_SIZE] == 0).all()
    assert np.abs(back - row).max() <= smallest / 8
    np.testing.assert_allclose(back[0, 3 * GROUP_SIZE], row[0, 3 * GROUP_SIZE], rtol=1e-6)


def test_rows_in_slices_are_as_all_at_once(
    weight: Array, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(weight, how(bits, "float16"))
    # Slices of two rows and a rest, and rows that are longer than a slice.
    for limit in (200, 10):
        monkeypatch.setattr(groups, "_SLICE_VALUES", limit)
        for part, expected in zip(quantize(weight, how(bits, "float16")), whole, strict=True):
            np.testing.assert_array_equal(part, expected)


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 48 values do not divide into groups of 32"):
        quantize(np.zeros((2, 48), np.float32), how(4, "float16"))


def test_halved_weights_have_halved_scales_and_the_same_words(weight: Array, bits: int) -> None:
    """What lets `rescale_every` divide weights before they are quantized."""
    words, scales = quantize(weight, how(bits, "float32"))
    halved_words, halved_scales = quantize(weight * np.float32(0.5), how(bits, "float32"))
    np.testing.assert_array_equal(halved_words, words)
    np.testing.assert_array_equal(halved_scales * 2, scales)


@pytest.mark.parametrize("group", [8, 24, 0])
def test_groups_of_other_sizes(weight: Array, bits: int, group: int) -> None:
    """Each is quantized as a row of its own would be."""
    stored, alone = Stored.symmetric(bits, "float32", group), Stored.symmetric(bits, "float32", 0)
    size = group or weight.shape[1]
    words, scales = quantize(weight, stored)
    assert (words.shape, scales.shape) == ((9, 96 * bits // 32), (9, 96 // size))
    pieces = [quantize(weight[:, i : i + size], alone) for i in range(0, 96, size)]
    np.testing.assert_array_equal(words, np.concatenate([piece for piece, _ in pieces], axis=1))
    np.testing.assert_array_equal(scales, np.concatenate([piece for _, piece in pieces], axis=1))
    back = dequantize([words, scales], stored)
    steps = np.repeat(scales, size, axis=1)
    assert (np.abs(back - weight) <= steps * (0.5 + 1e-4)).all()


def test_an_offset_moves_what_is_stored_and_not_what_it_means(weight: Array) -> None:
    stored, moved = Stored(2, "float32", 32, 1), Stored(2, "float32", 32, 2)
    (words, scales), (others, same) = quantize(weight, stored), quantize(weight, moved)
    np.testing.assert_array_equal(others, words + np.uint32(0x55555555))
    np.testing.assert_array_equal(scales, same)
    np.testing.assert_array_equal(
        dequantize([words, scales], stored), dequantize([others, same], moved)
    )


@pytest.mark.parametrize("dtype", SCALES)
def test_plain_weights_are_rounded_to_their_type(weight: Array, dtype: str) -> None:
    (values,) = quantize(weight, Stored(0, dtype))
    np.testing.assert_array_equal(values, weight.astype(dtype))
    np.testing.assert_array_equal(dequantize([values], Stored(0, dtype)), values.astype(np.float32))
