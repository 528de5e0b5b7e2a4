"""Runs a model one operation at a time, block by block, on several prompts at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from mlc_rwkv_world.compiler import pipeline
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.models.config import ModelConfig
from mlc_rwkv_world.models.versions import version_of
from mlc_rwkv_world.numerics import byte_inputs
from mlc_rwkv_world.numerics.steps import (
    Item,
    Kernels,
    Program,
    Row,
    Section,
    StateGet,
    take_apart,
)
from mlc_rwkv_world.numerics.weights import Weights
from mlc_rwkv_world.quantization import Format
from mlc_rwkv_world.runtime.parameters import to_device
from mlc_rwkv_world.runtime.threads import use as use_threads
from mlc_rwkv_world.transforms.fp32_layers import FP32Layers

Array = NDArray[Any]
FUNCTION = "rwkv_world_prefill"


@dataclasses.dataclass(frozen=True)
class Seen:
    """An operation's result, and what it would lose with inputs rounded to bytes, if measured."""

    row: Row
    values: Array
    loss: float | None = None


# What a section gives on its way, and at its end.
Rows = Generator[Seen, None, Array]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Token ids of B prompts, at least one each, that are read together, each on its own."""

    ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def offsets(self) -> Array:
        """int32 [B + 1]."""
        return np.array([0, *accumulate(map(len, self.ids))], np.int32)

    def place(self, row: int) -> tuple[int, int]:
        """The prompt, and the position in it, of one of the `tokens` rows."""
        prompt = int(np.searchsorted(self.offsets(), row, side="right")) - 1
        return prompt, row - int(self.offsets()[prompt])


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A model's configuration and format, the type it computes in, and its weights.

    `int8` says that a CPU is to round the inputs of its products to bytes, which is measured
    beside.
    """

    config: ModelConfig
    format: Format
    compute_dtype: str
    weights: Weights
    int8: bool = False


class Stepwise:
    """Models for the same prompts, whose steps are compiled together for this CPU.

    Memory: the parameters of one operation, and the values of one block that are still needed.
    """

    def __init__(self, models: Sequence[Arithmetic], prompts: Prompts) -> None:
        self.prompts = prompts
        kernels = Kernels()
        self.models = [_Model(model, prompts, kernels) for model in models]
        # The steps hold no blocks: their types are settled.
        config = dataclasses.replace(models[0].config, fp32_layers=())
        target = resolve("llvm").target
        lowered = pipeline.run(kernels.module(), target, config, {}, None)
        with target:
            built = relax.build(lowered, target=target, relax_pipeline=tvm.transform.Sequential([]))
        use_threads(None)
        self.machine = relax.VirtualMachine(built, tvm.cpu())

    def first(self, model: int) -> Rows:
        """What comes before the blocks."""
        found = self.models[model]
        inputs = {
            found.plain.ids: np.concatenate([np.array(ids, np.int32) for ids in self.prompts.ids])
        }
        return self._run(found, found.plain.first, inputs)

    def block(self, model: int, block: int, wide: bool, x: Array) -> Rows:
        """One block on its input [T, D], in float32 if `wide`, else as the model computes."""
        found = self.models[model]
        section = found.program(wide).blocks[block]
        exact = wide or block in (found.arithmetic.config.fp32_layers or ())
        return self._run(found, section, {section.entry: _cast(x, section.entry_dtype)}, exact)

    def last(self, model: int, wide: bool, x: Array) -> Rows:
        """What comes after the blocks, the last of which was `wide` or not: logits [B, V]."""
        found = self.models[model]
        section = found.program(wide).last
        return self._run(found, section, {section.entry: _cast(x, section.entry_dtype)})

    def _run(
        self, model: _Model, section: Section, inputs: dict[int, Array], exact: bool = False
    ) -> Rows:
        values: dict[int, Any] = {key: tvm.runtime.tensor(x) for key, x in inputs.items()}
        program = model.plain
        values[program.offsets] = tvm.runtime.tensor(self.prompts.offsets())
        rows = {row.value: row for row in section.rows}
        uses = _last_uses(section)
        loss: float | None = None
        for number, step in enumerate(section.steps):
            if isinstance(step, StateGet):
                values[step.gives] = tvm.runtime.tensor(model.state_row(step.row))
            elif isinstance(step, Item):
                values[step.gives] = values[step.source][step.index]
            else:
                args = [values[value] for value in step.takes]
                weights = model.arithmetic.weights.read(step.weights)
                args += [to_device(weight, tvm.cpu()) for weight in weights]
                values[step.gives] = self.machine[step.function](*args)
                if step.quantized and model.arithmetic.int8 and not exact:
                    loss = self._loss(step.function, args, values[step.gives].numpy())
                # The model that is compared with may read its own before this goes on.
                del args, weights
            if step.gives in rows:
                yield Seen(rows[step.gives], values[step.gives].numpy(), loss)
                loss = None
            for value in uses.get(number, ()):
                values.pop(value, None)
        result: Array = values[section.exit].numpy()
        return result

    def _loss(self, function: str, args: Sequence[Any], expected: Array) -> float | None:
        x, *weights = args
        if not np.isfinite(x.numpy()).all():
            return None
        x = tvm.runtime.tensor(byte_inputs.rounded(x.numpy()))
        return byte_inputs.loss(expected, self.machine[function](x, *weights).numpy())


def _cast(x: Array, dtype: str) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def _last_uses(section: Section) -> dict[int, list[int]]:
    """Which values each step is the last to read."""
    last: dict[int, int] = {}
    for number, step in enumerate(section.steps):
        last |= dict.fromkeys(step.takes, number)
    last.pop(section.exit, None)
    uses: dict[int, list[int]] = {}
    for value, number in last.items():
        uses.setdefault(number, []).append(value)
    return uses


class _Model:
    def __init__(self, arithmetic: Arithmetic, prompts: Prompts, kernels: Kernels) -> None:
        self.arithmetic = arithmetic
        config = arithmetic.config
        self.shape = (len(prompts.ids), config.hidden_size)
        self.initial = version_of(config.model_version).initial_rows
        names = [spec.name for spec in parameters(config, arithmetic.format)]
        mod = _bound(export(config, arithmetic.format, arithmetic.compute_dtype), prompts)
        self.plain = take_apart(mod, FUNCTION, names, kernels)
        self.wide = self.plain
        if arithmetic.compute_dtype != "float32":
            widen = tvm.transform.Sequential([FP32Layers(range(config.num_hidden_layers))])
            self.wide = take_apart(widen(mod), FUNCTION, names, kernels)

    def program(self, wide: bool) -> Program:
        return self.wide if wide else self.plain

    def state_row(self, row: int) -> Array:
        return np.full(self.shape, self.initial[row], np.float32)


def _bound(mod: IRModule, prompts: Prompts) -> IRModule:
    """The prefill alone, for these prompts."""
    sizes = {
        "seq_len": prompts.tokens,
        "batch_size": len(prompts.ids),
        "num_offsets": len(prompts.ids) + 1,
    }
    alone = IRModule({FUNCTION: mod[FUNCTION]})
    return relax.transform.BindSymbolicVars(sizes)(alone)


def finish(rows: Rows) -> Array:
    """Runs a section to its end; what it gives."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            result: Array = end.value
            return result
