"""What kernels of several versions compute, in NumPy alone: TVM is not needed to read this."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """x: [T, D]; weight, bias: [D]. Computes in x's dtype."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps) * weight + bias)


def head_norm(y: Array, weight: Array, bias: Array, size: int, eps: float) -> Array:
    """Each head of `size` channels of y [T, D] normalized; weight, bias: [D].

    Computes in y's dtype.
    """
    heads = y.reshape(len(y), -1, size)
    centred = heads - heads.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray((centred / np.sqrt(variance + eps)).reshape(y.shape) * weight + bias)


def sigmoid(x: Array) -> Array:
    """Computes in x's dtype, and rounds each operation to it."""
    return np.asarray(1 / (1 + np.exp(-x)))


def token_shift(x: Array, last: Array, offsets: Array) -> Array:
    """The row before each row. x: [T, D]; last: [B, D]; offsets: [B + 1]."""
    shifted = np.empty_like(x)
    for s, (begin, end) in enumerate(pairwise(offsets)):
        shifted[begin] = last[s]
        shifted[begin + 1 : end] = x[begin : end - 1]
    return shifted


def last_rows(x: Array, offsets: Array) -> Array:
    """The last row of each sequence, [B, D]. x: [T, D]; offsets: [B + 1]."""
    return np.asarray(x[np.asarray(offsets[1:]) - 1])
