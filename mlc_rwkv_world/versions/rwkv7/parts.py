"""What RWKV-7's parts mean, in operators and smaller parts: what runs where no kernel suits.

Roles: `x` the residual [T, D]; `norm` weight and bias of the normalization before the branch; `mix`
how much of the previous input each product gets; `receptance`, `key`, `value`, `output` and the
factors `w1` to `g2` stored weights; `w0`, `a0`, `v0`, `k_k`, `k_a`, `r_k`, `ln_x` vectors;
`value_first` block 0's value [T, D], none in block 0; `offsets` what divides rows into sequences,
none for steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from mlc_rwkv_world.versions.rwkv7.reference import DECAY_RATE

WEIGHTS = ("receptance", "key", "value", "w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_x")
# The order of the ratios in `mix`.
MIXES = "rwkvag"


def time_mix(part: Part) -> list[Tensor]:
    """Fields of the state: previous input, the heads' matrices.

    Results: the residual, and in block 0 its value.
    """
    x, state = part.tensor("x"), PartState(part)
    blends = norm_mix(part, state, segments_of(part, state.batch), 0)
    given = {role: role for role in (*WEIGHTS, *VECTORS, "value_first", OFFSETS) if role in part}
    kept = {key: part.attrs[key] for key in ("float32_keys", "head_size", "head_eps", "ranks")}
    outs = [(ty.shape.values, str(ty.dtype)) for ty in part.outs[: -len(state.results())]]
    inner = part.smaller("rwkv7.wkv", {"blends": blends, **given}, outs, **kept)
    gated, *value_first = state.emit(inner, [1])
    return [residual_product(part, gated, "output", x), *value_first, *state.results()]


def wkv(part: Part) -> list[Tensor]:
    """What `output` reads, of the compute type, and in block 0 its value; the heads' matrices."""
    state, blends = PartState(part), dict(zip(MIXES, part.tensors("blends"), strict=True))
    width = blends["r"].shape[1]
    row = (blends["r"].shape, "float32")
    given = "float32" if part.attrs["float32_keys"] else part.compute

    def wide(x: Tensor, role: str) -> Tensor:
        return op.astype(product(part, x, role, width, given), "float32")

    r, k, v = (wide(blends[x], role) for x, role in zip("rkv", WEIGHTS, strict=False))
    w = part.tensor("w0") + _low_rank(part, blends["w"], "w", op.tanh)
    w = op.exp(op.sigmoid(w) * -DECAY_RATE)
    a = op.sigmoid(part.tensor("a0") + _low_rank(part, blends["a"], "a"))
    g = _low_rank(part, blends["g"], "g", op.sigmoid)
    value_first = [] if "value_first" in part else [v]
    if "value_first" in part:
        share = op.sigmoid(part.tensor("v0") + _low_rank(part, blends["v"], "v"))
        v = v + (part.tensor("value_first") - v) * share
    args = {"k": k, "a": a, "k_k": "k_k", "k_a": "k_a"}
    size = part.attrs["head_size"]
    k, kk, b = part.smaller("rwkv7.keys", args, [row] * 3, head_size=size).emit()
    args = {"r": r, "w": w, "k": k, "v": v, "kk": kk, "b": b, OFFSETS: OFFSETS}
    (y,) = state.emit(part.smaller("rwkv7.recurrence", args, [row]), [0])
    args = {"y": y, "r": r, "k": k, "v": v, "r_k": "r_k", "norm": "ln_x"}
    (y,) = part.smaller("rwkv7.head_norm", args, [row], eps=part.attrs["head_eps"]).emit()
    return [op.astype(y * g, part.compute), *value_first, *state.results()]


def _low_rank(
    part: Part, x: Tensor, name: str, act: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """`W2 act(W1 x)`, float32 [T, D]."""
    rank = part.attrs["ranks"][name]
    hidden = product(part, x, f"{name}1", rank, part.compute if act is None else "float32")
    if act is not None:
        hidden = op.astype(act(hidden), part.compute)
    return product(part, hidden, f"{name}2", x.shape[1], "float32")


def channel_mix(part: Part) -> list[Tensor]:
    """The field of the state: previous input."""
    x, state = part.tensor("x"), PartState(part)
    (xk,) = norm_mix(part, state, segments_of(part, state.batch), 0)
    key = squared_relu_product(part, xk, "key", part.attrs["hidden"])
    return [residual_product(part, key, "value", x), *state.results()]


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    "rwkv7.channel_mix": channel_mix,
    "rwkv7.time_mix": time_mix,
    "rwkv7.wkv": wkv,
}
