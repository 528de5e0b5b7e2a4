"""RWKV-4's own kernels on CUDA: what surrounds the products of a decode step is part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.cuda.matvec import matvec_gated_add
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.kernels.rules import pair, streamed
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.versions.rwkv4.cuda.time_mix import time_mix_step


def wkv(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Three products, the recurrence and the gate, for one token."""
    products = dict(zip(("key", "value", "receptance"), part.tensors("blends"), strict=True))
    if OFFSETS in part or POOL not in part or not streamed(emit, part, products):
        return None
    state = part.tensor(POOL)
    weights = [tensor for role in products for tensor in pair(part.tensors(role))]
    vectors = [part.tensor("decay"), part.tensor("first")]
    place = [state, part.tensor(SLOTS), part.attrs["layer"]]
    return emit.call(
        time_mix_step,
        [*products.values(), *weights, *vectors, *place],
        [tensor_type(part.outs[0])],
        state=state,
        stored=[part.weights[role] for role in products],
    )


def gated_residual(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """Both products of one token, the gate, the residual and its halving."""
    products = {"value": part.tensor("x"), "receptance": part.tensor("gate")}
    if not streamed(emit, part, products):
        return None
    given = [(x, *pair(part.tensors(role))) for role, x in products.items()]
    return emit.call(
        matvec_gated_add,
        [*(tensor for one in given for tensor in one), part.tensor("residual")],
        [tensor_type(part.outs[0])],
        stored=[part.weights[role] for role in products],
        factor=part.attrs["factor"],
    )


RULES: Mapping[str, Rule] = {"rwkv4.gated_residual": gated_residual, "rwkv4.wkv": wkv}
