"""RWKV-4's own kernels on CUDA: what surrounds the products of a decode step is part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels import matvec_cuda
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type, type_of
from mlc_rwkv_world.kernels.rules import pair, streamed
from mlc_rwkv_world.models.parts import OFFSETS, POOL, SLOTS, Part


def wkv(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Three products, the recurrence and the gate, for one token."""
    blends = part.tensors("blends")
    weights = [part.tensors(role) for role in ("key", "value", "receptance")]
    alike = len({type_of(x) for x in blends}) == 1
    if OFFSETS in part or POOL not in part or not alike:
        return None
    if not streamed(emit, list(zip(blends, weights, strict=True))):
        return None
    state = part.tensor(POOL)
    stored = [tensor for weight in weights for tensor in pair(weight)]
    vectors = [part.tensor("decay"), part.tensor("first")]
    args = [*blends, *stored, *vectors, state, part.tensor(SLOTS)]
    outs = [tensor_type(part.outs[0])]
    return emit.call(matvec_cuda.time_mix_step, [*args, part.attrs["layer"]], outs, state=state)


def gated_residual(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Both products of one token, the gate, the residual and its halving."""
    products = [(part.tensor("x"), "value"), (part.tensor("gate"), "receptance")]
    given = [(x, part.tensors(role)) for x, role in products]
    if not streamed(emit, given):
        return None
    args = [tensor for x, weight in given for tensor in (x, *pair(weight))]
    return emit.call(
        matvec_cuda.matvec_gated_add,
        [*args, part.tensor("residual")],
        [tensor_type(part.outs[0])],
        factor=part.attrs["factor"],
    )


RULES: Mapping[str, Rule] = {"rwkv4.gated_residual": gated_residual, "rwkv4.wkv": wkv}
