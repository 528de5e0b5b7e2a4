"""RWKV-4 on a CPU: each branch of a block in three kernels for a step, four or five for a prompt.

Of a step's six kernels, four have products and run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.common.layer_norm import layer_norm
from mlc_rwkv_world.kernels.cpu import channel_mix as channel_mix_kernels
from mlc_rwkv_world.kernels.cpu import mix
from mlc_rwkv_world.kernels.cpu.arithmetic import input_type, inputs_of
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, type_of
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.storage.stored import ROWS
from mlc_rwkv_world.versions.rwkv4.cpu import time_mix as time_mix_kernels


class _Branch:
    """A branch of a block whose weights are all packed alike, in our pool."""

    def __init__(self, part: Part, emit: Emitter) -> None:
        self.part = part
        self.emit = emit
        self.x = part.tensor("x")
        self.rows = type_of(self.x)
        self.one = next(iter(part.weights.values()))
        self.inputs = inputs_of(self.one, str(part.packed))
        self.state = part.tensor(POOL)

    @staticmethod
    def suits(part: Part) -> bool:
        """Whether the kernels take a part: whole blocks of rows, weights packed alike."""
        packed = part.packed is not None and POOL in part and not part.attrs.get("of_previous")
        alike = len(set(part.weights.values())) == 1
        return packed and alike and type_of(part.tensor("x")).static(1) % ROWS == 0

    def input(self, width: int) -> TensorType:
        """What a product with a weight of so many columns takes."""
        return input_type(self.rows.shape[0], width, self.inputs)

    def place(self, *row: int) -> list[Tensor | int]:
        """Where a kernel finds the rows of its layer."""
        return [self.state, self.part.tensor(SLOTS), self.part.attrs["layer"], *row]

    def mix(self) -> list[Tensor]:
        """The blends, as inputs of products."""
        part, emit, eps = self.part, self.emit, self.part.attrs["eps"]
        outs = [self.input(self.rows.static(1))] * len(part.args["mix"])
        norm = part.tensors("norm")
        tail = [*part.tensors("mix"), *self.place(part.attrs["rows"][0])]
        given = {"state": self.state, "inputs": self.inputs}
        if OFFSETS not in part:
            blends = emit.call(mix.norm_mix, [self.x, *norm, *tail], outs, eps=eps, **given)
        else:
            (normal,) = emit.call(layer_norm, [self.x, *norm], [self.rows], eps=eps)
            args = [normal, part.tensor(OFFSETS), *tail]
            blends = emit.call(mix.shift_mix, args, outs, **given)
        *blends, self.state = blends
        return blends

    def call(
        self, build: Callable[..., Any], args: Sequence[Any], outs: Sequence[Any], **options: Any
    ) -> list[Tensor]:
        """Calls a kernel with products."""
        # Of two kinds of weights at most, which here are one.
        stored, inputs = [self.one, self.one], self.inputs
        return self.emit.call(build, args, outs, stored=stored, inputs=inputs, **options)


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _Branch.suits(part):
        return None
    branch = _Branch(part, emit)
    blends, out = branch.mix(), [branch.input(branch.rows.static(1))]
    weights = [part.tensor(role) for role in ("key", "value", "receptance")]
    vectors = [part.tensor("decay"), part.tensor("first")]
    if OFFSETS in part:
        kvr = branch.call(time_mix_kernels.products, [*blends, *weights], [branch.rows] * 3)
        args = [*kvr, *vectors, part.tensor(OFFSETS), *branch.place()]
        gated, state = emit.call(
            time_mix_kernels.recurrence, args, out, state=branch.state, inputs=branch.inputs
        )
    else:
        args = [*blends, *weights, *vectors, *branch.place()]
        gated, state = branch.call(time_mix_kernels.time_mix, args, out, state=branch.state)
    args = [gated, part.tensor("output"), branch.x]
    return [*branch.call(channel_mix_kernels.residual, args, [branch.rows]), state]


def channel_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _Branch.suits(part):
        return None
    branch = _Branch(part, emit)
    args = [*branch.mix(), part.tensor("key"), part.tensor("receptance")]
    outs = [branch.input(part.attrs["hidden"]), branch.rows]
    key, gate = branch.call(channel_mix_kernels.key_receptance, args, outs)
    args = [key, part.tensor("value"), gate, branch.x]
    factor = part.attrs["factor"]
    after = branch.call(channel_mix_kernels.gated_residual, args, [branch.rows], factor=factor)
    return [*after, branch.state]


RULES: Mapping[str, Rule] = {"rwkv4.channel_mix": channel_mix, "rwkv4.time_mix": time_mix}
