"""The parts that several versions consist of: how each is emitted, and its decomposition.

T rows x of D channels. `linear` alone has kernels everywhere, and no decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.model.parts import Part, make
from mlc_rwkv_world.model.segments import Segments, segments_of
from mlc_rwkv_world.model.state import PartState

# From a part to its results.
Decomposition = Callable[[Part], Sequence[Tensor]]


def layer_norm(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """x [T, D] of any type, weight and bias [D], to float32 [T, D]."""
    weight, bias = norm
    return op.layer_norm(op.astype(x, "float32"), weight.shape, weight, bias, eps)


def linear(x: Tensor, weight: Any, out_dtype: str) -> Tensor:
    """`x W^T`, [T, N], of x [T, K] and a layer's weight, in x's type, as `out_dtype`."""
    outs = [((x.shape[0], weight.shape[0]), out_dtype)]
    return make("linear", {"x": x, "weight": weight}, outs, compute=x.dtype).emit()[0]


def product(part: Part, x: Tensor, role: str, width: int, out_dtype: str) -> Tensor:
    """The product of x with a weight of a part that is being decomposed."""
    inner = part.smaller("linear", {"x": x, "weight": role}, [((x.shape[0], width), out_dtype)])
    return inner.emit()[0]


def norm_mix(part: Part, state: PartState, segments: Segments, place: int) -> list[Tensor]:
    """For each ratio m of the part's `mix`: n m + n' (1 - m), of the compute type.

    n is the normalized x, n' the row of n before it, the first of which the state keeps. Where the
    part says `of_previous`, its ratios are those of n' instead.
    """
    x = part.tensor("x")
    args = {"x": x, "norm": "norm", "mix": "mix", OFFSETS: segments.offsets}
    outs = [(x.shape, part.compute)] * len(part.args["mix"])
    kept = {key: part.attrs[key] for key in ("eps", "of_previous") if key in part.attrs}
    return state.emit(part.smaller("norm_mix", args, outs, **kept), [place])


def _norm_mix(part: Part) -> list[Tensor]:
    state = PartState(part)
    segments = segments_of(part, state.batch)
    x = layer_norm(part.tensor("x"), part.tensors("norm"), part.attrs["eps"])
    previous = segments.previous(x, state.get(0))
    one, other = (previous, x) if part.attrs.get("of_previous") else (x, previous)
    blends = [
        op.astype(one * ratio + other * (1.0 - ratio), part.compute)
        for ratio in part.tensors("mix")
    ]
    state.set(0, segments.last(x))
    return [*blends, *state.results()]


def residual_product(part: Part, x: Tensor, role: str, residual: Tensor) -> Tensor:
    """residual [T, N] + W x."""
    args = {"x": x, "weight": role, "residual": residual}
    outs = [(residual.shape, part.compute)]
    return part.smaller("residual_product", args, outs).emit()[0]


def _residual_product(part: Part) -> list[Tensor]:
    residual = part.tensor("residual")
    found = product(part, part.tensor("x"), "weight", residual.shape[1], part.compute)
    return [residual + found]


def squared_relu_product(part: Part, x: Tensor, role: str, width: int) -> Tensor:
    """relu(W x)^2, [T, width]."""
    args = {"x": x, "weight": role}
    outs = [((x.shape[0], width), part.compute)]
    return part.smaller("squared_relu_product", args, outs).emit()[0]


def _squared_relu_product(part: Part) -> list[Tensor]:
    width = part.outs[0].shape.values[1]
    found = product(part, part.tensor("x"), "weight", width, part.compute)
    return [op.square(op.relu(found))]


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    "norm_mix": _norm_mix,
    "residual_product": _residual_product,
    "squared_relu_product": _squared_relu_product,
}
