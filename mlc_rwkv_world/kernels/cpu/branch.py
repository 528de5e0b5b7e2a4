"""A branch of a block on a CPU, with packed weights and in our pool: what rules for it share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.common.layer_norm import layer_norm
from mlc_rwkv_world.kernels.cpu import channel_mix, mix
from mlc_rwkv_world.kernels.cpu.arithmetic import input_type, inputs_of
from mlc_rwkv_world.kernels.emitter import Emitter, type_of
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.storage.stored import ROWS


class Branch:
    """A branch whose products all take inputs of one kind. `state` is the pool, as it changes."""

    def __init__(self, part: Part, emit: Emitter) -> None:
        self.part = part
        self.emit = emit
        self.x = part.tensor("x")
        self.rows = type_of(self.x)
        self.inputs = inputs_of(next(iter(part.weights.values())), str(part.packed))
        self.state = part.tensor(POOL)

    @staticmethod
    def suits(part: Part) -> bool:
        """Whether such kernels take a part: whole blocks of rows, weights packed, one kind."""
        if part.packed is None or POOL not in part:
            return False
        kinds = {inputs_of(stored, part.packed) for stored in part.weights.values()}
        return len(kinds) == 1 and type_of(part.tensor("x")).static(1) % ROWS == 0

    def input(self, width: int) -> TensorType:
        """What a product with a weight of so many columns takes."""
        return input_type(self.rows.shape[0], width, self.inputs)

    def place(self, *row: int) -> list[Tensor | int]:
        """Where a kernel finds the rows of its layer."""
        return [self.state, self.part.tensor(SLOTS), self.part.attrs["layer"], *row]

    def mix(self) -> list[Tensor]:
        """The blends of the part's ratios, as inputs of products."""
        of_previous = bool(self.part.attrs.get("of_previous"))
        return self._mix(self.part.tensors("mix"), of_previous, keeps=False)

    def mix_of_previous(self, ratio: Tensor) -> list[Tensor]:
        """The blend of one ratio, an input of products, and the rows that it blends.

        These are the normalized ones and those before them, float32 [T, D].
        """
        return self._mix([ratio], True, keeps=True)

    def _mix(self, ratios: Sequence[Tensor], of_previous: bool, *, keeps: bool) -> list[Tensor]:
        part, emit, eps = self.part, self.emit, self.part.attrs["eps"]
        outs = [self.input(self.rows.static(1))] * len(ratios)
        norm = part.tensors("norm")
        tail = [*ratios, *self.place(part.attrs["rows"][0])]
        given = {"state": self.state, "inputs": self.inputs, "of_previous": of_previous}
        given["keeps"] = keeps
        kept = [self.rows] * keeps
        if OFFSETS not in part:
            outs = [*outs, *kept, *kept]
            found = emit.call(mix.norm_mix, [self.x, *norm, *tail], outs, eps=eps, **given)
            *found, self.state = found
            return found
        (normal,) = emit.call(layer_norm, [self.x, *norm], [self.rows], eps=eps)
        args = [normal, part.tensor(OFFSETS), *tail]
        *blends, self.state = emit.call(mix.shift_mix, args, [*outs, *kept], **given)
        return [blends[0], normal, blends[1]] if keeps else blends

    def products(
        self,
        build: Callable[..., Any],
        args: Sequence[Any],
        outs: Sequence[Any],
        *roles: str,
        **options: Any,
    ) -> list[Tensor]:
        """Calls a kernel with products, whose weights have these roles, in order."""
        stored = [self.part.weights[role] for role in roles]
        return self.emit.call(build, args, outs, stored=stored, inputs=self.inputs, **options)

    def by_head(
        self,
        build: Callable[..., Any],
        found: Sequence[Tensor],
        factors: Sequence[str],
        vectors: Sequence[str],
        **options: Any,
    ) -> Tensor:
        """What `build` computes head by head in the state's second field, and its output product.

        The kernel takes `found`, then the tensors of `factors`, which are stored weights, and of
        `vectors`. Gives the residual, [T, D] float32.
        """
        part, given = self.part, [*factors, *vectors, OFFSETS]
        args = [
            *found,
            *(tensor for role in given for tensor in part.tensors(role)),
            *self.place(part.attrs["rows"][1]),
        ]
        gated, self.state = self.products(
            build,
            args,
            [self.input(self.rows.static(1))],
            *factors,
            state=self.state,
            size=part.attrs["head_size"],
            eps=part.attrs["head_eps"],
            step=OFFSETS not in part,
            **options,
        )
        args = [gated, part.tensor("output"), self.x]
        (after,) = self.products(channel_mix.residual, args, [self.rows], "output")
        return after
