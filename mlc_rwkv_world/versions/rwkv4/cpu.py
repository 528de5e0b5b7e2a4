"""RWKV-4 on a CPU: each branch of a block in three kernels for a step, four or five for a prompt.

Of a step's six kernels, four have products and run in parallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels import channel_mix_cpu, mix_cpu, time_mix_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import input_type
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, type_of
from mlc_rwkv_world.kernels.layer_norm import layer_norm
from mlc_rwkv_world.kernels.packed_weight import ROWS
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.models.parts import OFFSETS, POOL, SLOTS, Part


def _suits(part: Part) -> bool:
    """Whether the kernels take a branch: our state, whole blocks of rows, weights packed alike."""
    if part.packed is None or POOL not in part:
        return False
    weights = [type_of(part.tensor(role)) for role in part.weights]
    forms = {(ty.dtype, *ty.shape[2:]) for ty in weights}
    return len(forms) == 1 and type_of(part.tensor("x")).static(1) % ROWS == 0


def _input(part: Part, role: str) -> TensorType:
    """The type in which the product with a weight takes its input."""
    rows = type_of(part.tensor("x")).shape[0]
    return input_type(rows, type_of(part.tensor(role)), str(part.packed))


def _mix(part: Part, emit: Emitter, role: str) -> list[Tensor]:
    """The blends, as inputs of the products like `role`'s, then the state."""
    x, norm, state = part.tensor("x"), part.tensors("norm"), part.tensor(POOL)
    outs = [_input(part, role)] * len(part.args["mix"])
    eps = part.attrs["eps"]
    place = [part.attrs["layer"], part.attrs["rows"][0]]
    tail = [*part.tensors("mix"), state, part.tensor(SLOTS), *place]
    if OFFSETS not in part:
        return emit.call(mix_cpu.norm_mix, [x, *norm, *tail], outs, state=state, eps=eps)
    (normal,) = emit.call(layer_norm, [x, *norm], [type_of(x)], eps=eps)
    args = [normal, part.tensor(OFFSETS), *tail]
    return emit.call(mix_cpu.shift_mix, args, outs, state=state)


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _suits(part):
        return None
    x, out = part.tensor("x"), [_input(part, "output")]
    rows = type_of(x)
    *blends, state = _mix(part, emit, "key")
    weights = [part.tensor(role) for role in ("key", "value", "receptance")]
    vectors = [part.tensor("decay"), part.tensor("first")]
    place = [state, part.tensor(SLOTS), part.attrs["layer"]]
    if OFFSETS in part:
        kvr = emit.call(time_mix_cpu.products, [*blends, *weights], [rows] * 3)
        args = [*kvr, *vectors, part.tensor(OFFSETS), *place]
        gated, state = emit.call(time_mix_cpu.recurrence, args, out, state=state)
    else:
        args = [*blends, *weights, *vectors, *place]
        gated, state = emit.call(time_mix_cpu.time_mix, args, out, state=state)
    args = [gated, part.tensor("output"), x]
    return [*emit.call(channel_mix_cpu.residual, args, [rows]), state]


def channel_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _suits(part):
        return None
    x = part.tensor("x")
    rows = type_of(x)
    *blends, state = _mix(part, emit, "key")
    weights = [part.tensor("key"), part.tensor("receptance")]
    outs = [_input(part, "value"), rows]
    key, gate = emit.call(channel_mix_cpu.key_receptance, [*blends, *weights], outs)
    args = [key, part.tensor("value"), gate, x]
    factor = part.attrs["factor"]
    return [*emit.call(channel_mix_cpu.gated_residual, args, [rows], factor=factor), state]


RULES: Mapping[str, Rule] = {"rwkv4.channel_mix": channel_mix, "rwkv4.time_mix": time_mix}
