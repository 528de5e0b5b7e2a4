"""What a product loses where a CPU rounds its inputs to bytes, in groups with one scale each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels.cpu.activation import dequantized, reference
from mlc_rwkv_world.numerics.weights import StoredWeights
from mlc_rwkv_world.versions.precision import Float, Precision
from mlc_rwkv_world.versions.weights import Weights

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class ByteInputs(Precision):
    """A precision whose products with quantized weights are also computed with rounded inputs.

    Results are the exact ones.
    """

    stored: StoredWeights
    _losses: list[float | None] = dataclasses.field(default_factory=list)

    def product(self, x: Array, weights: Weights, name: str, dtype: Float | None = None) -> Array:
        if not (self.stored.quantized(name) and np.isfinite(x).all()):
            return super().product(x, weights, name, dtype)
        both = super().product(np.concatenate([x, rounded(x)]), weights, name, dtype)
        exact, found = both[: len(x)], both[len(x) :]
        self._losses.append(loss(exact, found))
        return exact

    def taken(self) -> float | None:
        """What the product since the last call lost; None where none was measured."""
        return self._losses.pop() if self._losses else None


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
