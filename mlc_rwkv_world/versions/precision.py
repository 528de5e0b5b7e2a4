"""What a reference computes in.

FLOAT64   rounds nothing that matters: what kernels are held against
FLOAT32   a model that computes in float32, or a block that does so in one of float16
FLOAT16   a model that computes in float16, rounded where compiled code rounds
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.versions.weights import Weights

Array = NDArray[Any]
Float = type[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Precision:
    """Products take and give `narrow` and are summed in `wide`; vectors and states are `wide`."""

    narrow: Float
    wide: Float

    def product(self, x: Array, weights: Weights, name: str, dtype: Float | None = None) -> Array:
        """x [T, K] times the transpose of matrix `name` [N, K], which is read as `narrow`.

        The result is rounded to `dtype`, or to `narrow`.
        """
        x = x.astype(self.narrow, copy=False).astype(self.wide, copy=False)
        parts = []
        for part in weights.slices(name):
            part = part.astype(self.narrow, copy=False).astype(self.wide, copy=False)
            parts.append((x @ part.T).astype(dtype or self.narrow, copy=False))
        return np.concatenate(parts, axis=1)

    def rows(self, weights: Weights, name: str, ids: Array) -> Array:
        """Rows `ids` [T] of matrix `name` in `wide`."""
        return weights.rows(name, ids).astype(self.wide, copy=False)

    def vector(self, weights: Weights, name: str) -> Array:
        """Vector `name` in `wide`."""
        return weights.vector(name).astype(self.wide, copy=False)

    def layer_norm(self, x: Array, weights: Weights, layer: str, eps: float) -> Array:
        """x [T, D] of any type, normalized in `wide`."""
        weight = self.vector(weights, f"{layer}.weight")
        bias = self.vector(weights, f"{layer}.bias")
        return formulas.layer_norm(x.astype(self.wide, copy=False), weight, bias, eps)


FLOAT64 = Precision(np.float64, np.float64)
FLOAT32 = Precision(np.float32, np.float32)
FLOAT16 = Precision(np.float16, np.float32)
