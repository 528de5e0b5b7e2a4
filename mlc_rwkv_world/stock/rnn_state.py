"""TVM's RNNState behind the `State` protocol: the state as stock engines hold it.

Each layer has one slot for each field, float32. The engine owns the object, chooses the
sequences of a call, and copies rows in and out through the functions of `stock.kernels.rnn_state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.model.fields import Field, Span, spans
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.state import emit_with_fields
from mlc_rwkv_world.stock.kernels.rnn_state import getter, setter


class RNNStateObject(nn.Object):  # type: ignore[misc]
    """The handle that an engine passes to `prefill` and `decode`."""


class RNNState:
    """Fields of a `vm.builtin.rnn_state` object for the B sequences of one call."""

    def __init__(
        self, handle: RNNStateObject, batch: Any, width: int, fields: Sequence[Field]
    ) -> None:
        self.handle = handle
        self.batch = batch
        self.width = width
        self.numbers = {span: number for number, span in enumerate(spans(fields))}

    def get(self, layer: int, span: Span) -> Tensor:
        builder = relax.BlockBuilder.current()
        call = relax.call_dps_packed(
            "vm.builtin.rnn_state_get",
            [self.handle._expr, relax.prim_value(layer), relax.prim_value(self.numbers[span])],
            out_ty=relax.TensorType([self.batch, *span.shape(self.width)], "float32"),
        )
        return Tensor(_expr=builder.emit(call))

    def set(self, layer: int, span: Span, value: Tensor) -> None:
        builder = relax.BlockBuilder.current()
        call = relax.call_pure_packed(
            "vm.builtin.rnn_state_set",
            self.handle._expr,
            relax.prim_value(layer),
            relax.prim_value(self.numbers[span]),
            value._expr,
            ty_args=[relax.ObjectType()],
        )
        self.handle = RNNStateObject(_expr=builder.emit(call), _name="state")

    def emit(self, part: Part, layer: int, spans: Sequence[Span]) -> list[Tensor]:
        return emit_with_fields(self, part, layer, spans)


def create_rnn_state(
    max_batch_size: tirx.Var,
    max_history: tirx.Var,
    layers: int,
    width: int,
    fields: Sequence[Field],
) -> RNNStateObject:
    """A new state object, in which each of a version's fields is one entry of its shape."""
    builder = relax.BlockBuilder.current()
    shapes = [span.shape(width) for span in spans(fields)]
    gets = [builder.add_func(getter(s, i), f"rnn_state_get_{i}") for i, s in enumerate(shapes)]
    sets = [builder.add_func(setter(s, i), f"rnn_state_set_{i}") for i, s in enumerate(shapes)]
    initial = [
        relax.const(np.repeat(np.array(field.initial, "float32"), width).reshape(shape))
        for field, shape in zip(fields, shapes, strict=True)
    ]
    call = relax.call_pure_packed(
        "vm.builtin.rnn_state_create",
        relax.prim_value(layers),
        max_batch_size,
        max_history,
        relax.Tuple(gets),
        relax.Tuple(sets),
        relax.Tuple(initial),
        ty_args=[relax.ObjectType()],
    )
    return RNNStateObject(_expr=call, _name="rnn_state")
