"""What a reference reads its weights from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Weights(Protocol):
    """A model's parameters, floats of whatever width, by the names of its unquantized form.

    `model.blocks.0.attention.key.weight` is a matrix [N, K], `model.blocks.0.ln1.bias` a vector.
    """

    def vector(self, name: str) -> Array:
        """A vector [D]."""

    def rows(self, name: str, ids: Array) -> Array:
        """Rows `ids` [T] of a matrix, [T, K]."""

    def slices(self, name: str) -> Iterable[Array]:
        """A matrix, some of its rows after others: each [n, K], [N, K] in all."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """Weights that are in memory as they are."""

    arrays: Mapping[str, Array]

    def vector(self, name: str) -> Array:
        return self.arrays[name]

    def rows(self, name: str, ids: Array) -> Array:
        return np.asarray(self.arrays[name][ids])

    def slices(self, name: str) -> Iterable[Array]:
        yield self.arrays[name]
