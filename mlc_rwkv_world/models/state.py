"""The recurrent state as a model sees it: rows of float32 that its parts read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from tvm import relax
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.models import operations as ops
from mlc_rwkv_world.models.parts import ROWS, STATE, Part


class State(Protocol):
    """Rows [B, D] of float32, addressed by layer and row; each is read before it is written."""

    def get(self, layer: int, row: int) -> Tensor:
        """The row as it was before this pass."""

    def set(self, layer: int, row: int, value: Tensor) -> None:
        """Replaces the row."""

    def emit(self, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
        """Emits a part that reads and writes these rows; its other results."""


def _with_rows(part: Part, role: str, given: Sequence[Tensor], **attrs: Any) -> Part:
    """The part with what it takes of a state, and gives back of the same types."""
    exprs = tuple(tensor._expr for tensor in given)
    return dataclasses.replace(
        part,
        args={**part.args, role: exprs},
        attrs={**part.attrs, **attrs},
        outs=(*part.outs, *(relax.TensorType(t.shape, t.dtype) for t in given)),
    )


class TensorState:
    """One float32 tensor [B, L, R, D] that is updated in place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def get(self, layer: int, row: int) -> Tensor:
        return ops.state_get(self.tensor, layer, row)

    def set(self, layer: int, row: int, value: Tensor) -> None:
        self.tensor = ops.state_set(self.tensor, layer, row, value)

    def emit(self, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
        whole = _with_rows(part, STATE, [self.tensor], layer=layer, rows=list(rows))
        *results, self.tensor = whole.emit()
        return results


class Rows:
    """Rows that are passed one by one, as the parts of a state of another kind take them."""

    def __init__(self, layer: int, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        self.layer = layer
        self.held = dict(zip(rows, tensors, strict=True))

    def get(self, layer: int, row: int) -> Tensor:
        return self.held[row]

    def set(self, layer: int, row: int, value: Tensor) -> None:
        self.held[row] = value

    def emit(self, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
        return emit_with_rows(self, part, layer, rows)


def emit_with_rows(state: State, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
    """Emits a part that gets each row as a tensor of its own, and gives the new ones."""
    given = [state.get(layer, row) for row in rows]
    results = _with_rows(part, ROWS, given, layer=layer, rows=list(rows)).emit()
    split = len(results) - len(rows)
    for row, value in zip(rows, results[split:], strict=True):
        state.set(layer, row, value)
    return results[:split]


class PartState:
    """The state of a part that is being decomposed, in whichever form it has it."""

    def __init__(self, part: Part) -> None:
        self.layer: int = part.attrs["layer"]
        self.rows: list[int] = part.attrs["rows"]
        self._tensor = TensorState(part.tensor(STATE)) if STATE in part else None
        self._rows = None if STATE in part else Rows(self.layer, self.rows, part.tensors(ROWS))
        self._state: Any = self._tensor or self._rows

    def get(self, place: int) -> Tensor:
        """Row `place` of those of the part."""
        found: Tensor = self._state.get(self.layer, self.rows[place])
        return found

    def set(self, place: int, value: Tensor) -> None:
        self._state.set(self.layer, self.rows[place], value)

    def emit(self, part: Part, places: Sequence[int]) -> list[Tensor]:
        """Emits a smaller part with some of the rows."""
        rows = [self.rows[place] for place in places]
        found: list[Tensor] = self._state.emit(part, self.layer, rows)
        return found

    @property
    def batch(self) -> Any:
        """How many sequences there are."""
        given = self._tensor.tensor if self._tensor is not None else self._state.held[self.rows[0]]
        return given.shape[0]

    def results(self) -> list[Tensor]:
        """The state as the part gives it back."""
        if self._tensor is not None:
            return [self._tensor.tensor]
        return [self._state.held[row] for row in self.rows]
