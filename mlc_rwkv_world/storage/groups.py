"""Matrices to what is stored of them, and back, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.storage.stored import Stored

Array = NDArray[Any]
# Rows are quantized in slices, so that temporaries stay small beside the tensor itself.
_SLICE_VALUES = 1 << 22


def quantize(weight: NDArray[np.float32], stored: Stored) -> list[Array]:
    """The tensors in which a float32 weight [N, K] is stored, as `stored.tensors` lists them.

    A group's scale is its largest magnitude over the largest integer, rounded to the scales' type;
    a value is stored as round(value / scale) plus the offset. Raises IndivisibleRow, a ValueError,
    where K does not divide.
    """
    rows, inner = weight.shape
    types = stored.tensors(rows, inner)
    if not stored.bits:
        return [weight.astype(stored.dtype, copy=False)]
    words, scales = (np.empty(tensor.shape, tensor.dtype) for tensor in types)
    step = max(1, _SLICE_VALUES // inner)
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        words[part], scales[part] = _quantize_rows(weight[part], stored)
    return [words, scales]


def _quantize_rows(weight: NDArray[np.float32], stored: Stored) -> tuple[Array, Array]:
    largest = stored.largest
    groups = weight.reshape(len(weight), -1, stored.group_size(weight.shape[1]))
    scale = (np.abs(groups).max(axis=2) / np.float32(largest)).astype(stored.dtype)
    divisor = scale.astype(np.float32)
    # A group of zeros, or one too small for the scale's type, is stored as zeros.
    divisor[divisor == 0] = np.inf
    values = np.rint(groups / divisor[:, :, None])
    np.clip(values, -largest, largest, out=values)
    values += stored.offset
    fields = values.astype(np.uint32).reshape(len(weight), -1, stored.per_element)
    return np.bitwise_or.reduce(fields << _shifts(stored), axis=2), scale


def dequantize(tensors: Sequence[Array], stored: Stored) -> NDArray[np.float32]:
    """The float32 weight [N, K] that the tensors stand for."""
    if not stored.bits:
        return tensors[0].astype(np.float32)
    words, scales = tensors
    fields = (words[:, :, None] >> _shifts(stored)) & np.uint32((1 << stored.bits) - 1)
    centred = fields.reshape(len(words), -1).astype(np.float32) - stored.offset
    spread = np.repeat(scales.astype(np.float32), centred.shape[1] // scales.shape[1], axis=1)
    return np.asarray(centred * spread, np.float32)


def _shifts(stored: Stored) -> NDArray[np.uint32]:
    """Where the values of a word begin."""
    return np.arange(0, 32, stored.bits, dtype=np.uint32)
