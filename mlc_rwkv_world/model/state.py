"""The recurrent state as a model sees it: rows of float32 that its parts read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tvm import relax
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import POOL, SLOTS
from mlc_rwkv_world.model import operations as ops
from mlc_rwkv_world.model.parts import ROWS, Part


class State(Protocol):
    """Rows [B, D] of float32, addressed by layer and row; each is read before it is written."""

    def get(self, layer: int, row: int) -> Tensor:
        """The row as it was before this pass."""

    def set(self, layer: int, row: int, value: Tensor) -> None:
        """Replaces the row."""

    def emit(self, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
        """Emits a part that reads and writes these rows; its other results."""


def _with_state(
    part: Part, args: Mapping[str, Sequence[Tensor]], changed: Sequence[Tensor], **attrs: Any
) -> Part:
    """The part with what it takes of a state, and gives back changed, of the same types."""
    exprs = {role: tuple(tensor._expr for tensor in given) for role, given in args.items()}
    return dataclasses.replace(
        part,
        args={**part.args, **exprs},
        attrs={**part.attrs, **attrs},
        outs=(*part.outs, *(relax.TensorType(t.shape, t.dtype) for t in changed)),
    )


class Pool:
    """Slots of a float32 tensor [S, L, R, D], which is updated in place.

    `slots` int32 [B, 2] are those that each sequence reads and writes, see `kernels.common.state`.
    """

    def __init__(self, tensor: Tensor, slots: Tensor) -> None:
        self.tensor = tensor
        self.slots = slots

    def get(self, layer: int, row: int) -> Tensor:
        return ops.state_get(self.tensor, self.slots, layer, row)

    def set(self, layer: int, row: int, value: Tensor) -> None:
        self.tensor = ops.state_set(self.tensor, self.slots, layer, row, value)

    def emit(self, part: Part, layer: int, rows: Sequence[int]) -> list[Tensor]:
        args = {POOL: [self.tensor], SLOTS: [self.slots]}
        whole = _with_state(part, args, [self.tensor], layer=layer, rows=list(rows))
        *results, self.tensor = whole.emit()
        return results


class Rows:
    """Rows that are passed one by one, as the parts of a state of another kind take them."""

    def __init__(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
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
    results = _with_state(part, {ROWS: given}, given, layer=layer, rows=list(rows)).emit()
    split = len(results) - len(rows)
    for row, value in zip(rows, results[split:], strict=True):
        state.set(layer, row, value)
    return results[:split]


class PartState:
    """The state of a part that is being decomposed, in whichever form it has it."""

    def __init__(self, part: Part) -> None:
        self.layer: int = part.attrs["layer"]
        self.rows: list[int] = part.attrs["rows"]
        pooled = POOL in part
        self._pool = Pool(part.tensor(POOL), part.tensor(SLOTS)) if pooled else None
        self._state: Any = self._pool or Rows(self.rows, part.tensors(ROWS))

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
        given = self._pool.slots if self._pool is not None else self._state.held[self.rows[0]]
        return given.shape[0]

    def results(self) -> list[Tensor]:
        """The state as the part gives it back."""
        if self._pool is not None:
            return [self._pool.tensor]
        return [self._state.held[row] for row in self.rows]
