"""Kernels for the parts that several versions consist of, by kind of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels import linear as as_stored
from mlc_rwkv_world.kernels.cpu import product as product_cpu
from mlc_rwkv_world.kernels.cpu.activation import quantize
from mlc_rwkv_world.kernels.cpu.arithmetic import input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.bfloat16 import round_inputs
from mlc_rwkv_world.kernels.cuda import matvec as matvec_cuda
from mlc_rwkv_world.kernels.cuda import norm_mix, several_rows
from mlc_rwkv_world.kernels.cuda.dot import Streamed
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type, type_of
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.model.parts import Part


def linear(part: Part, emit: Emitter) -> Sequence[Tensor]:
    """A product with a weight as it is stored, or as it is packed for a CPU."""
    x, out, stored = part.tensor("x"), tensor_type(part.outs[0]), part.weights["weight"]
    if part.packed is None:
        return emit.call(as_stored.linear, [x, *part.tensors("weight")], [out], stored=[stored])
    inputs = inputs_of(stored, part.packed)
    if inputs is not Inputs.FLOAT32:
        wanted = input_type(out.shape[0], type_of(x).static(1), inputs)
        (x,) = emit.call(_CONVERSIONS[inputs], [x], [wanted])
    args = [x, part.tensor("weight")]
    return emit.call(product_cpu.linear_packed, args, [out], stored=[stored], inputs=inputs)


def streamed(emit: Emitter, part: Part, products: Mapping[str, Tensor]) -> bool:
    """Whether a decode step's products suit CUDA's kernels: a part's weights and their inputs."""
    if part.packed is not None or not Signature([], [], emit.target).has_async_copies:
        return False
    kinds = set()
    for role, x in products.items():
        given = type_of(x)
        one = Streamed.of(given, type_of(part.tensors(role)[0]), part.weights[role])
        if given.shape[0] != 1 or not one.can_stream:
            return False
        kinds.add((given.dtype, one.outer, one.stored))
    return len(kinds) == 1


def products(part: Part, emit: Emitter, given: Mapping[str, Tensor]) -> list[Tensor]:
    """Each weight's product with its rows, by role, float32: in one launch where they suit."""
    weights = [part.tensors(role) for role in given]
    stored = [part.weights[role] for role in given]
    outs = [
        TensorType((type_of(x).shape[0], type_of(weight[0]).static(0)), "float32")
        for x, weight in zip(given.values(), weights, strict=True)
    ]
    args = [*given.values(), *(tensor for weight in weights for tensor in pair(weight))]
    kinds = Signature([type_of(arg) for arg in args], outs, emit.target, stored)
    if several_rows.suits(kinds):
        return emit.call(several_rows.several_rows, args, outs, stored=stored)
    each = zip(given.values(), weights, outs, stored, strict=True)
    return [
        found
        for x, weight, out, one in each
        for found in emit.call(as_stored.linear, [x, *weight], [out], stored=[one])
    ]


def pair(weight: Sequence[Tensor]) -> list[Tensor]:
    """A weight as CUDA's kernels take it: two tensors, which are one where it is plain."""
    return list(weight) if len(weight) == 2 else [*weight, *weight]


def _norm_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    """All blends in one kernel, on CUDA."""
    suits = POOL in part and len(part.args["mix"]) <= norm_mix.MOST
    if not (suits and Signature([], [], emit.target).has_async_copies):
        return None
    state = part.tensor(POOL)
    (row,) = part.attrs["rows"]
    given = [part.tensor("x"), *part.tensors("norm"), *part.tensors("mix")]
    outs = [tensor_type(ty) for ty in part.outs[:-1]]
    place = [state, part.tensor(SLOTS), part.attrs["layer"], row]
    return emit.call(
        norm_mix.norm_mix,
        [*given, *part.tensors(OFFSETS), *place],
        outs,
        state=state,
        eps=part.attrs["eps"],
        of_previous=bool(part.attrs.get("of_previous")),
    )


def _residual_product(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    x, weight = part.tensor("x"), part.tensors("weight")
    if not streamed(emit, part, {"weight": x}):
        return None
    args, stored = [x, *pair(weight), part.tensor("residual")], [part.weights["weight"]]
    return emit.call(matvec_cuda.matvec_add, args, [tensor_type(part.outs[0])], stored=stored)


def _squared_relu_product(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    x, weight = part.tensor("x"), part.tensors("weight")
    if not streamed(emit, part, {"weight": x}):
        return None
    args, stored = [x, *pair(weight)], [part.weights["weight"]]
    kernel = matvec_cuda.matvec_relu_square
    return emit.call(kernel, args, [tensor_type(part.outs[0])], stored=stored)


_CONVERSIONS = {Inputs.BFLOAT16: round_inputs, Inputs.BYTES: quantize}
ANYWHERE: Mapping[str, Rule] = {"linear": linear}
RULES: Mapping[str, Mapping[str, Rule]] = {
    "cuda": {
        "norm_mix": _norm_mix,
        "residual_product": _residual_product,
        "squared_relu_product": _squared_relu_product,
    },
}
