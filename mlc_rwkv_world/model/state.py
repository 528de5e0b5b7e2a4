"""The recurrent state as a model sees it: fields of float32 that its parts read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tvm import relax
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import POOL, SLOTS
from mlc_rwkv_world.model import operations as ops
from mlc_rwkv_world.model.fields import Span
from mlc_rwkv_world.model.parts import ROWS, Part


class State(Protocol):
    """Fields [B, D] or [B, rows, D] of float32 in layers; each is read before it is written."""

    def get(self, layer: int, span: Span) -> Tensor:
        """The field as it was before this pass."""

    def set(self, layer: int, span: Span, value: Tensor) -> None:
        """Replaces the field."""

    def emit(self, part: Part, layer: int, spans: Sequence[Span]) -> list[Tensor]:
        """Emits a part that reads and writes these fields; its other results."""


def _with_state(
    part: Part,
    args: Mapping[str, Sequence[Tensor]],
    changed: Sequence[Tensor],
    layer: int,
    spans: Sequence[Span],
) -> Part:
    """The part with what it takes of a state, and gives back changed, of the same types."""
    exprs = {role: tuple(tensor._expr for tensor in given) for role, given in args.items()}
    place = {
        "layer": layer,
        "rows": [span.row for span in spans],
        "heights": [span.rows for span in spans],
    }
    return dataclasses.replace(
        part,
        args={**part.args, **exprs},
        attrs={**part.attrs, **place},
        outs=(*part.outs, *(relax.TensorType(t.shape, t.dtype) for t in changed)),
    )


class Pool:
    """Slots of a float32 tensor [S, L, R, D], which is updated in place.

    `slots` int32 [B, 2] are those that each sequence reads and writes, see `kernels.common.state`.
    """

    def __init__(self, tensor: Tensor, slots: Tensor) -> None:
        self.tensor = tensor
        self.slots = slots

    def get(self, layer: int, span: Span) -> Tensor:
        return ops.state_get(self.tensor, self.slots, layer, span)

    def set(self, layer: int, span: Span, value: Tensor) -> None:
        self.tensor = ops.state_set(self.tensor, self.slots, layer, span, value)

    def emit(self, part: Part, layer: int, spans: Sequence[Span]) -> list[Tensor]:
        args = {POOL: [self.tensor], SLOTS: [self.slots]}
        *results, self.tensor = _with_state(part, args, [self.tensor], layer, spans).emit()
        return results


class Fields:
    """Fields that are passed one by one, as the parts of a state of another kind take them."""

    def __init__(self, spans: Sequence[Span], tensors: Sequence[Tensor]) -> None:
        self.held = dict(zip(spans, tensors, strict=True))

    def get(self, layer: int, span: Span) -> Tensor:
        return self.held[span]

    def set(self, layer: int, span: Span, value: Tensor) -> None:
        self.held[span] = value

    def emit(self, part: Part, layer: int, spans: Sequence[Span]) -> list[Tensor]:
        return emit_with_fields(self, part, layer, spans)


def emit_with_fields(state: State, part: Part, layer: int, spans: Sequence[Span]) -> list[Tensor]:
    """Emits a part that gets each field as a tensor of its own, and gives the new ones."""
    given = [state.get(layer, span) for span in spans]
    results = _with_state(part, {ROWS: given}, given, layer, spans).emit()
    split = len(results) - len(spans)
    for span, value in zip(spans, results[split:], strict=True):
        state.set(layer, span, value)
    return results[:split]


class PartState:
    """The state of a part that is being decomposed, in whichever form it has it."""

    def __init__(self, part: Part) -> None:
        self.layer: int = part.attrs["layer"]
        rows, heights = part.attrs["rows"], part.attrs["heights"]
        self.spans = [Span(*span) for span in zip(rows, heights, strict=True)]
        pooled = POOL in part
        self._pool = Pool(part.tensor(POOL), part.tensor(SLOTS)) if pooled else None
        self._state: Any = self._pool or Fields(self.spans, part.tensors(ROWS))

    def get(self, place: int) -> Tensor:
        """Field `place` of those of the part."""
        found: Tensor = self._state.get(self.layer, self.spans[place])
        return found

    def set(self, place: int, value: Tensor) -> None:
        self._state.set(self.layer, self.spans[place], value)

    def emit(self, part: Part, places: Sequence[int]) -> list[Tensor]:
        """Emits a smaller part with some of the fields."""
        spans = [self.spans[place] for place in places]
        found: list[Tensor] = self._state.emit(part, self.layer, spans)
        return found

    @property
    def batch(self) -> Any:
        """How many sequences there are."""
        given = self._pool.slots if self._pool is not None else self._state.held[self.spans[0]]
        return given.shape[0]

    def results(self) -> list[Tensor]:
        """The state as the part gives it back."""
        if self._pool is not None:
            return [self._pool.tensor]
        return [self._state.held[span] for span in self.spans]
