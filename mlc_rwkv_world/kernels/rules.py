"""Kernels for the parts that several versions consist of, by kind of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels import linear as as_stored
from mlc_rwkv_world.kernels import matvec_cuda, product_cpu
from mlc_rwkv_world.kernels.activation import quantize
from mlc_rwkv_world.kernels.arithmetic_cpu import FLOAT32, input_type, takes_bytes
from mlc_rwkv_world.kernels.bfloat16 import round_inputs
from mlc_rwkv_world.kernels.dot_cuda import Stored
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type, type_of
from mlc_rwkv_world.kernels.norm_mix_cuda import norm_mix_step
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.models.parts import OFFSETS, POOL, SLOTS, Part


def linear(part: Part, emit: Emitter) -> Sequence[Tensor]:
    """A product with a weight as it is stored, or as it is packed for a CPU."""
    x, out = part.tensor("x"), tensor_type(part.outs[0])
    if part.packed is None:
        return emit.call(as_stored.linear, [x, *part.tensors("weight")], [out])
    weight = part.tensor("weight")
    wanted = input_type(out.shape[0], type_of(weight), part.packed)
    if wanted.dtype != FLOAT32:
        convert = quantize if takes_bytes(wanted) else round_inputs
        (x,) = emit.call(convert, [x], [wanted])
    return emit.call(product_cpu.linear_packed, [x, weight], [out])


def streamed(emit: Emitter, products: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> bool:
    """Whether a decode step's products, of inputs and stored weights, suit CUDA's kernels."""
    if not Signature([], [], emit.target).has_async_copies:
        return False
    kinds = set()
    for x, weight in products:
        given = type_of(x)
        one = Stored.of(given, [type_of(tensor) for tensor in weight])
        if given.shape[0] != 1 or not one.can_stream:
            return False
        kinds.add((given.dtype, one.outer, one.dtype, one.bits, one.scale_dtype))
    return len(kinds) == 1


def pair(weight: Sequence[Tensor]) -> list[Tensor]:
    """A weight as CUDA's kernels take it: two tensors, which are one where it is plain."""
    return list(weight) if len(weight) == 2 else [*weight, *weight]


def _norm_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """The blends of one step of each sequence, on CUDA."""
    suits = POOL in part and OFFSETS not in part
    if not (suits and Signature([], [], emit.target).has_async_copies):
        return None
    state = part.tensor(POOL)
    (row,) = part.attrs["rows"]
    given = [part.tensor("x"), *part.tensors("norm"), *part.tensors("mix")]
    outs = [tensor_type(ty) for ty in part.outs[:-1]]
    args = [*given, state, part.tensor(SLOTS), part.attrs["layer"], row]
    return emit.call(norm_mix_step, args, outs, state=state, eps=part.attrs["eps"])


def _residual_product(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    x, weight = part.tensor("x"), part.tensors("weight")
    if not streamed(emit, [(x, weight)]):
        return None
    args = [x, *pair(weight), part.tensor("residual")]
    return emit.call(matvec_cuda.matvec_add, args, [tensor_type(part.outs[0])])


def _squared_relu_product(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    x, weight = part.tensor("x"), part.tensors("weight")
    if not streamed(emit, [(x, weight)]):
        return None
    return emit.call(
        matvec_cuda.matvec_relu_square, [x, *pair(weight)], [tensor_type(part.outs[0])]
    )


ANYWHERE: Mapping[str, Rule] = {"linear": linear}
RULES: Mapping[str, Mapping[str, Rule]] = {
    "cuda": {
        "norm_mix": _norm_mix,
        "residual_product": _residual_product,
        "squared_relu_product": _squared_relu_product,
    },
}
