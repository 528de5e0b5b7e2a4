"""Symmetric quantization in groups of 32 along a row, as mlc_llm's `_1` layouts store it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32
# Rows are quantized in slices, so that temporaries stay small beside the tensor itself.
_SLICE_VALUES = 1 << 22


def quantize(
    weight: NDArray[np.float32], bits: int, scale_dtype: str
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """weight float32 [N, K], K a multiple of 32, to words uint32 [N, K * bits / 32] and scales
    [N, K / 32].

    A group's scale is its largest magnitude over 2^(bits-1) - 1, rounded to `scale_dtype`; a value
    is stored as round(value / scale) + 2^(bits-1) - 1, the first in the lowest bits of a word.
    """
    rows, inner = weight.shape
    if inner % GROUP_SIZE:
        raise ValueError(f"rows of {inner} values do not divide into groups of {GROUP_SIZE}")
    per_word = 32 // bits
    words = np.empty((rows, inner // per_word), np.uint32)
    scales = np.empty((rows, inner // GROUP_SIZE), scale_dtype)
    step = max(1, _SLICE_VALUES // inner)
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        words[part], scales[part] = _quantize_rows(weight[part], bits, scale_dtype)
    return words, scales


def _quantize_rows(
    weight: NDArray[np.float32], bits: int, scale_dtype: str
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    largest = (1 << (bits - 1)) - 1
    groups = weight.reshape(len(weight), -1, GROUP_SIZE)
    scale = (np.abs(groups).max(axis=2) / np.float32(largest)).astype(scale_dtype)
    divisor = scale.astype(np.float32)
    # A group of zeros, or one too small for the scale's type, is stored as zeros.
    divisor[divisor == 0] = np.inf
    stored = np.rint(groups / divisor[:, :, None])
    np.clip(stored, -largest, largest, out=stored)
    stored += largest
    fields = stored.astype(np.uint32).reshape(len(weight), -1, 32 // bits)
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    words = np.bitwise_or.reduce(fields << shifts, axis=2)
    return words, scale


def dequantize(words: NDArray[np.uint32], scales: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """The float32 weight [N, K] that words and scales stand for."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    fields = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    centred = fields.reshape(len(words), -1).astype(np.float32) - ((1 << (bits - 1)) - 1)
    spread = np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=1)
    return np.asarray(centred * spread, np.float32)
