"""The parts of RWKV-5 and 6 that have a kernel on every target, and no decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.model.parts import ROWS, Part
from mlc_rwkv_world.versions.rwkv5 import heads, wkv

# The order in which the kernels take a token's vectors, and the bonus.
_TOKEN = ("r", "w", "k", "v", "u")


def _recurrence(part: Part, emit: Emitter) -> Sequence[Tensor]:
    args = [*(part.tensor(role) for role in _TOKEN), *part.tensors(OFFSETS)]
    if POOL not in part:
        outs = [tensor_type(ty) for ty in part.outs]
        return emit.call(wkv.wkv, [*args, part.tensor(ROWS)], outs)
    pool = part.tensor(POOL)
    (row,), (height,) = part.attrs["rows"], part.attrs["heights"]
    place = [pool, part.tensor(SLOTS), part.attrs["layer"], row]
    outs = [tensor_type(ty) for ty in part.outs[:-1]]
    return emit.call(wkv.wkv_pooled, [*args, *place], outs, state=pool, size=height)


def _head_norm(part: Part, emit: Emitter) -> Sequence[Tensor]:
    args, kept = [part.tensor("y"), *part.tensors("norm")], part.attrs
    outs = [tensor_type(part.outs[0])]
    return emit.call(heads.head_norm, args, outs, size=kept["head_size"], eps=kept["eps"])


ANYWHERE: Mapping[str, Rule] = {
    "rwkv5.head_norm": _head_norm,
    "rwkv5.recurrence": _recurrence,
}
