"""The parts of RWKV-7 that have a kernel on every target, and no decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.versions.matrix_rules import recurrence
from mlc_rwkv_world.versions.rwkv7 import heads, wkv

# The order in which the kernels take a token's vectors.
_TOKEN = ("r", "w", "k", "v", "kk", "b")


def _keys(part: Part, emit: Emitter) -> Sequence[Tensor]:
    args = [part.tensor(role) for role in ("k", "a", "k_k", "k_a")]
    outs = [tensor_type(ty) for ty in part.outs]
    return emit.call(heads.keys, args, outs, size=part.attrs["head_size"])


def _head_norm(part: Part, emit: Emitter) -> Sequence[Tensor]:
    args = [*(part.tensor(role) for role in ("y", "r", "k", "v", "r_k")), *part.tensors("norm")]
    return emit.call(heads.head_norm, args, [tensor_type(part.outs[0])], eps=part.attrs["eps"])


ANYWHERE: Mapping[str, Rule] = {
    "rwkv7.head_norm": _head_norm,
    "rwkv7.keys": _keys,
    "rwkv7.recurrence": recurrence(wkv.wkv, wkv.wkv_pooled, _TOKEN),
}
