"""RWKV-4 on a CPU: each branch of a block in three kernels for a step, four or five for a prompt.

Of a step's six kernels, four have products and run in parallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.kernels.cpu import channel_mix as channel_mix_kernels
from mlc_rwkv_world.kernels.cpu.branch import Branch
from mlc_rwkv_world.kernels.emitter import Emitter, Rule
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.versions.rwkv4.cpu import time_mix as time_mix_kernels


def _suits(part: Part) -> bool:
    """The kernels take weights that are all packed alike."""
    return Branch.suits(part) and len(set(part.weights.values())) == 1


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _suits(part):
        return None
    branch = Branch(part, emit)
    blends, out = branch.mix(), [branch.input(branch.rows.static(1))]
    roles = ("key", "value", "receptance")
    weights = [part.tensor(role) for role in roles]
    vectors = [part.tensor("decay"), part.tensor("first")]
    if OFFSETS in part:
        outs = [branch.rows] * 3
        kvr = branch.products(time_mix_kernels.products, [*blends, *weights], outs, *roles)
        args = [*kvr, *vectors, part.tensor(OFFSETS), *branch.place()]
        gated, state = emit.call(
            time_mix_kernels.recurrence, args, out, state=branch.state, inputs=branch.inputs
        )
    else:
        args = [*blends, *weights, *vectors, *branch.place()]
        gated, state = branch.products(
            time_mix_kernels.time_mix, args, out, *roles, state=branch.state
        )
    args = [gated, part.tensor("output"), branch.x]
    return [*branch.products(channel_mix_kernels.residual, args, [branch.rows], "output"), state]


def channel_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _suits(part):
        return None
    branch = Branch(part, emit)
    args = [*branch.mix(), part.tensor("key"), part.tensor("receptance")]
    outs = [branch.input(part.attrs["hidden"]), branch.rows]
    kernel = channel_mix_kernels.key_receptance
    key, gate = branch.products(kernel, args, outs, "key", "receptance")
    args = [key, part.tensor("value"), gate, branch.x]
    factor = part.attrs["factor"]
    gated = channel_mix_kernels.gated_residual
    after = branch.products(gated, args, [branch.rows], "value", factor=factor)
    return [*after, branch.state]


RULES: Mapping[str, Rule] = {"rwkv4.channel_mix": channel_mix, "rwkv4.time_mix": time_mix}
