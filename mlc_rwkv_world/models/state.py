"""The recurrent state as a model sees it: rows of float32 that it reads and writes."""

from __future__ import annotations

from typing import Protocol

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.models import operations as ops


class State(Protocol):
    """Rows [B, D] of float32, addressed by layer and row."""

    def get(self, layer: int, row: int) -> Tensor:
        """The row as it is now."""

    def set(self, layer: int, row: int, value: Tensor) -> None:
        """Replaces the row."""


class TensorState:
    """One float32 tensor [B, L, R, D] that is updated in place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get(self, layer: int, row: int) -> Tensor:
        return ops.state_get(self.tensor, layer, row)

    def set(self, layer: int, row: int, value: Tensor) -> None:
        self.tensor = ops.state_set(self.tensor, layer, row, value)
