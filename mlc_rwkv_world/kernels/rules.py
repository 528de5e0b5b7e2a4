"""Kernels for the parts that several versions consist of, by kind of target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tvm import tirx
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels import linear as as_stored
from mlc_rwkv_world.kernels.cpu import product as product_cpu
from mlc_rwkv_world.kernels.cpu.activation import quantize
from mlc_rwkv_world.kernels.cpu.arithmetic import input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.bfloat16 import round_inputs
from mlc_rwkv_world.kernels.cuda import matmul as matmul_cuda
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


def products(
    part: Part, emit: Emitter, given: Mapping[str, Tensor], ends: Mapping[str, str] | None = None
) -> list[Tensor]:
    """Each weight's product with its rows, by role, on CUDA: in one launch where they suit.

    Those of the roles in `ends` are inputs of products in their turn: what `cuda.acts` makes of
    them, in the part's compute type. The others are float32.
    """
    ends = ends or {}
    weights = [part.tensors(role) for role in given]
    stored = [part.weights[role] for role in given]
    types = [part.compute if role in ends else "float32" for role in given]
    each = zip(given.values(), weights, types, strict=True)
    outs = [TensorType((type_of(x).shape[0], type_of(w[0]).static(0)), ty) for x, w, ty in each]
    args = [*given.values(), *(tensor for weight in weights for tensor in pair(weight))]
    kinds = Signature([type_of(arg) for arg in args], outs, emit.target, stored)
    acts = tuple(ends.get(role, "") for role in given)
    if several_rows.suits(kinds):
        return emit.call(several_rows.several_rows, args, outs, stored=stored, acts=acts)
    if matmul_cuda.suits_several(kinds):
        return emit.call(matmul_cuda.several, args, outs, stored=stored, acts=acts)
    found = []
    for x, weight, out, one, act in zip(given.values(), weights, outs, stored, acts, strict=True):
        wide = TensorType(out.shape, "float32")
        (total,) = emit.call(as_stored.linear, [x, *weight], [wide], stored=[one])
        found.append(op.astype(_ACTS[act](total) if act else total, out.dtype))
    return found


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
    return _ended(part, emit, matvec_cuda.matvec_add, matmul_cuda.matmul_add, "residual")


def _squared_relu_product(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    return _ended(part, emit, matvec_cuda.matvec_relu_square, matmul_cuda.matmul_relu_square)


def _ended(
    part: Part, emit: Emitter, of_one: Build, of_several: Build, *roles: str
) -> Sequence[Tensor] | None:
    """A product and what follows it, of one row or of several, on CUDA."""
    x, weight, stored = part.tensor("x"), part.tensors("weight"), [part.weights["weight"]]
    kinds = Signature([type_of(x)], [], emit.target, stored)
    if streamed(emit, part, {"weight": x}):
        args, build = [x, *pair(weight)], of_one
    elif part.packed is None and matmul_cuda.suits(kinds):
        args, build = [x, *weight], of_several
    else:
        return None
    args += [part.tensor(role) for role in roles]
    return emit.call(build, args, [tensor_type(part.outs[0])], stored=stored)


Build = Callable[..., tirx.PrimFunc]
_ACTS: Mapping[str, Callable[[Tensor], Tensor]] = {"sigmoid": op.sigmoid, "tanh": op.tanh}
_CONVERSIONS = {Inputs.BFLOAT16: round_inputs, Inputs.BYTES: quantize}
ANYWHERE: Mapping[str, Rule] = {"linear": linear}
RULES: Mapping[str, Mapping[str, Rule]] = {
    "cuda": {
        "norm_mix": _norm_mix,
        "residual_product": _residual_product,
        "squared_relu_product": _squared_relu_product,
    },
}
