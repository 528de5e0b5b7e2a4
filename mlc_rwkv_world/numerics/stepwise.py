"""Runs a model by its version's reference, block by block, on several prompts at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.numerics.byte_inputs import ByteInputs
from mlc_rwkv_world.numerics.model import Model
from mlc_rwkv_world.numerics.prompts import Prompts
from mlc_rwkv_world.versions.precision import FLOAT16, FLOAT32, Precision
from mlc_rwkv_world.versions.table import version_of
from mlc_rwkv_world.versions.values import Carried, Value, Values

Array = NDArray[Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A value, and what its product would lose with inputs rounded to bytes, if measured."""

    value: Value
    loss: float | None = None


# What a part of the model gives on its way, and at its end.
Steps = Generator[Seen, None, T]


class Stepwise:
    """A model on some prompts, each from a fresh state.

    Memory: the parameters of one operation, of which a slice is widened at a time, and the values
    of one block.
    """

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model = model
        self.prompts = prompts
        self.reference = version_of(model.config.model_version).reference

    def first(self) -> Steps[Carried]:
        """What comes before the blocks."""
        model, precision = self.model, self._precision(wide=False)
        ids = self.prompts.joined()
        return _seen(self.reference.first(ids, model.weights, model.config, precision), precision)

    def block(self, number: int, carried: Carried, *, wide: bool) -> Steps[Carried]:
        """One block on what enters it, exactly in float32 if `wide`, else as the model computes."""
        model, precision = self.model, self._precision(wide)
        values = self.reference.block(
            number,
            carried,
            model.weights,
            self._fresh(),
            self.prompts.offsets(),
            model.config,
            precision,
        )
        after, _ = yield from _seen(values, precision)
        return after

    def last(self, carried: Carried) -> Steps[Array]:
        """What comes after the blocks: logits [B, V]."""
        model, precision = self.model, self._precision(wide=False)
        offsets = self.prompts.offsets()
        values = self.reference.last(carried, model.weights, offsets, model.config, precision)
        return _seen(values, precision)

    def computes_wide(self, block: int) -> bool:
        """Whether the model's configuration has a block compute in float32."""
        return block in (self.model.config.fp32_layers or ())

    def _precision(self, wide: bool) -> Precision:
        precision = FLOAT16 if self.model.narrow and not wide else FLOAT32
        if wide or not self.model.int8:
            return precision
        return ByteInputs(precision.narrow, precision.wide, self.model.weights)

    def _fresh(self) -> Array:
        """The rows of a layer of fresh states, float32 [B, R, D]."""
        config = self.model.config
        initial = np.array(version_of(config.model_version).initial_rows(config), np.float32)
        shape = (len(self.prompts.ids), len(initial), config.hidden_size)
        return np.broadcast_to(initial[:, None], shape)


def _seen(values: Values[T], precision: Precision) -> Steps[T]:
    while True:
        try:
            # What leaves a type's range is what is looked for.
            with np.errstate(over="ignore", invalid="ignore"):
                value = next(values)
        except StopIteration as end:
            result: T = end.value
            return result
        yield Seen(value, precision.taken() if isinstance(precision, ByteInputs) else None)
