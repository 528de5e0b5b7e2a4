"""The parts of RWKV-5 and 6 that have a kernel on every target, and no decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.versions.matrix_rules import recurrence
from mlc_rwkv_world.versions.rwkv5 import heads, wkv

# The order in which the kernels take a token's vectors, and the bonus.
_TOKEN = ("r", "k", "v", "w", "u")


def _head_norm(part: Part, emit: Emitter) -> Sequence[Tensor]:
    args, kept = [part.tensor("y"), *part.tensors("norm")], part.attrs
    outs = [tensor_type(part.outs[0])]
    return emit.call(heads.head_norm, args, outs, size=kept["head_size"], eps=kept["eps"])


ANYWHERE: Mapping[str, Rule] = {
    "rwkv5.head_norm": _head_norm,
    "rwkv5.recurrence": recurrence(wkv.wkv, wkv.wkv_pooled, _TOKEN),
}
