"""What a product loses where a CPU rounds its inputs to bytes, in groups with one scale each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels.activation import dequantized, reference

Array = NDArray[Any]


def rounded(x: Array) -> Array:
    """x [T, K], all finite, as the bytes that stand for it; of the same type."""
    return dequantized(reference(x.astype(np.float32))).astype(x.dtype)


def loss(exact: Array, found: Array) -> float | None:
    """How much of a product's channels [T, N] is lost: the median of their relative errors.

    A channel's error is the root mean square of its difference, over the standard deviation of the
    channel. One large input drowns the others of its group, and the large output that it gives
    would hide that from a measure of all channels, as a large constant would in one channel. None
    where nothing can be judged: fewer than two tokens, or values that are not finite.
    """
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    if not (np.isfinite(exact).all() and np.isfinite(found).all()):
        return None
    error = np.sqrt(np.square(found - exact).mean(axis=0))
    varies = exact.std(axis=0)
    judged = varies > 0
    return float(np.median(error[judged] / varies[judged])) if judged.any() else None
