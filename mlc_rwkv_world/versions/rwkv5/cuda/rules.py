"""What RWKV-5 and 6 do after their blends, on CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.cuda import head_matrices
from mlc_rwkv_world.kernels.cuda.head_end import head_end
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.kernels.rules import products
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.state import PartState
from mlc_rwkv_world.versions.rwkv5.cuda.step import step
from mlc_rwkv_world.versions.rwkv5.parts import decay_and_bonus
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS


def wkv(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Products, recurrence and what follows it."""
    size = part.attrs["head_size"]
    if POOL not in part or not head_matrices.suits(Signature([], [], emit.target), size):
        return None
    blends = part.tensors("blends")
    r, k, v, *gate = products(part, emit, dict(zip(PRODUCTS, blends, strict=False)))
    w, u = decay_and_bonus(part, r.shape[1])
    after, out = [*part.tensors("ln_x"), *gate], tensor_type(part.outs[0])
    eps, gated = part.attrs["head_eps"], bool(gate)
    if OFFSETS not in part:
        state = part.tensor(POOL)
        (row,) = part.attrs["rows"]
        place = [state, part.tensor(SLOTS), part.attrs["layer"], row]
        args = [r, k, v, w, u, *after, *place]
        return emit.call(step, args, [out], state=state, size=size, eps=eps, gate=gated)
    pool = PartState(part)
    token = {"r": r, "w": w, "k": k, "v": v, "u": u, OFFSETS: OFFSETS}
    inner = part.smaller("rwkv5.recurrence", token, [(r.shape, "float32")])
    (y,) = pool.emit(inner, [0])
    kept = {"size": size, "eps": eps, "bonus": False, "gate": gated, "silu": True}
    return [*emit.call(head_end, [y, *after], [out], **kept), *pool.results()]


RULES: Mapping[str, Rule] = {"rwkv5.wkv": wkv}
