"""Where a tuned state stands among the rows of a model's state.

State tuning trains what a model begins with: for each block and head a matrix S [N, N], in files as
(value channel, key channel); all else of the state is as new. RWKV-4 has no such matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TunedRows:
    """The heads' matrices fill `rows` rows of a layer from `row` on, head after head.

    They stand there as (value, key), or as (key, value) where they are `transposed`.
    """

    row: int
    rows: int
    transposed: bool

    def shape(self, layers: int, width: int) -> tuple[int, int, int, int]:
        """The shape [L, H, N, N] of the matrices of a model with rows of `width`."""
        return (layers, width // self.rows, self.rows, self.rows)

    def put(self, matrices: Array, state: Array) -> None:
        """Write matrices [L, H, N, N] (value, key) into a state [L, R, D]."""
        laid = matrices.swapaxes(2, 3) if self.transposed else matrices
        layers, _, width = state.shape
        rows = laid.reshape(layers, self.rows, width)
        state[:, self.row : self.row + self.rows] = rows
