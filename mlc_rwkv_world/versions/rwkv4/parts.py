"""What RWKV-4's parts mean, in operators and smaller parts: what runs where no kernel suits.

Roles: `x` the residual [T, D]; `norm` weight and bias of the normalization before the branch; `mix`
its ratios; `key`, `value`, `receptance`, `output` stored weights; `decay` and `first` the stored
time_decay and time_first; `offsets` what divides rows into sequences, none for steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.segments import segments_of
from mlc_rwkv_world.model.shared_parts import (
    Decomposition,
    norm_mix,
    product,
    residual_product,
    squared_relu_product,
)
from mlc_rwkv_world.model.state import PartState
from mlc_rwkv_world.versions.rwkv4 import operations


def time_mix(part: Part) -> list[Tensor]:
    """Fields of the state: previous input; a, b and p."""
    x, state = part.tensor("x"), PartState(part)
    blends = norm_mix(part, state, segments_of(part, state.batch), 0)
    weights = {role: role for role in ("key", "value", "receptance", "decay", "first", OFFSETS)}
    inner = part.smaller(
        "rwkv4.wkv",
        {"blends": blends, **weights},
        [(x.shape, part.compute)],
        float32_keys=part.attrs["float32_keys"],
    )
    (gated,) = state.emit(inner, [1])
    return [residual_product(part, gated, "output", x), *state.results()]


def wkv(part: Part) -> list[Tensor]:
    """`sigmoid(Wr xr) * wkv(Wk xk, Wv xv)` of the compute type; the field of a, b and p."""
    state = PartState(part)
    dtype = "float32" if part.attrs["float32_keys"] else part.compute
    xk, xv, xr = part.tensors("blends")
    width = xk.shape[1]
    k = op.astype(product(part, xk, "key", width, dtype), "float32")
    v = op.astype(product(part, xv, "value", width, dtype), "float32")
    r = op.sigmoid(op.astype(product(part, xr, "receptance", width, part.compute), "float32"))
    decay = op.negative(op.exp(part.tensor("decay")))
    args = (k, v, decay, part.tensor("first"), state.get(0))
    if OFFSETS in part:
        y, after = operations.wkv(*args, part.tensor(OFFSETS))
    else:
        y, after = operations.wkv_step(*args)
    state.set(0, after)
    return [op.astype(r * y, part.compute), *state.results()]


def channel_mix(part: Part) -> list[Tensor]:
    """The row of the state: previous input."""
    x, state = part.tensor("x"), PartState(part)
    xk, xr = norm_mix(part, state, segments_of(part, state.batch), 0)
    key = squared_relu_product(part, xk, "key", part.attrs["hidden"])
    inner = part.smaller(
        "rwkv4.gated_residual",
        {"x": key, "value": "value", "gate": xr, "receptance": "receptance", "residual": x},
        [(x.shape, part.compute)],
        factor=part.attrs["factor"],
    )
    return [*inner.emit(), *state.results()]


def gated_residual(part: Part) -> list[Tensor]:
    """`factor * (residual + sigmoid(Wr gate) * (Wv x))`."""
    residual, width = part.tensor("residual"), part.outs[0].shape.values[1]
    r = op.sigmoid(product(part, part.tensor("gate"), "receptance", width, part.compute))
    out = residual + r * product(part, part.tensor("x"), "value", width, part.compute)
    return [out * part.attrs["factor"] if part.attrs["factor"] != 1.0 else out]


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    "rwkv4.channel_mix": channel_mix,
    "rwkv4.gated_residual": gated_residual,
    "rwkv4.time_mix": time_mix,
    "rwkv4.wkv": wkv,
}
