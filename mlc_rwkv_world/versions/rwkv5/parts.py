"""What RWKV-5's parts mean, in operators and smaller parts: what runs where no kernel suits.

Roles: `x` the residual [T, D]; `norm` weight and bias of the normalization before the branch; `mix`
its ratios; `receptance`, `key`, `value`, `gate` (which 5.0 lacks), `output` stored weights; `decay`
the stored time_decay [H, N], or each token's [T, D]; `first` the stored time_first [H, N]; `ln_x`
weight and bias of the heads' normalization; `offsets` what divides rows into sequences, none for
steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.segments import segments_of
from mlc_rwkv_world.model.shared_parts import Decomposition, norm_mix, product, residual_product
from mlc_rwkv_world.model.state import PartState
from mlc_rwkv_world.versions.rwkv4 import parts as rwkv4
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS

# What `rwkv5.wkv` has of the part around it.
KEPT = ("float32_keys", "head_size", "head_eps")


def time_mix(part: Part) -> list[Tensor]:
    """Fields of the state: previous input, the heads' matrices."""
    x, state = part.tensor("x"), PartState(part)
    blends = norm_mix(part, state, segments_of(part, state.batch), 0)
    gated = after_mixes(part, state, blends, "decay")
    return [residual_product(part, gated, "output", x), *state.results()]


def after_mixes(part: Part, state: PartState, blends: list[Tensor], decay: str | Tensor) -> Tensor:
    """`rwkv5.wkv` of inputs in the order of PRODUCTS; the heads' matrices are field 1.

    `decay` is the role of a parameter, or the tokens' own.
    """
    roles = (*PRODUCTS, "first", "ln_x", OFFSETS)
    given = {role: role for role in roles if role in part}
    inner = part.smaller(
        "rwkv5.wkv",
        {"blends": blends, "decay": decay, **given},
        [(blends[0].shape, part.compute)],
        fixed=isinstance(decay, str),
        **{key: part.attrs[key] for key in KEPT},
    )
    (gated,) = state.emit(inner, [1])
    return gated


def wkv(part: Part) -> list[Tensor]:
    """What `output` reads, of the compute type; the heads' matrices."""
    state, blends = PartState(part), part.tensors("blends")
    width, row = blends[0].shape[1], (blends[0].shape, "float32")
    given = "float32" if part.attrs["float32_keys"] else part.compute

    def wide(x: Tensor, role: str) -> Tensor:
        kind = part.compute if role == "gate" else given
        return op.astype(product(part, x, role, width, kind), "float32")

    r, k, v, *gate = (
        wide(x, role) for x, role in zip(blends, PRODUCTS[: len(blends)], strict=True)
    )
    w, u = decay_and_bonus(part, width)
    args = {"r": r, "w": w, "k": k, "v": v, "u": u, OFFSETS: OFFSETS}
    (y,) = state.emit(part.smaller("rwkv5.recurrence", args, [row]), [0])
    kept = {"eps": part.attrs["head_eps"], "head_size": part.attrs["head_size"]}
    (y,) = part.smaller("rwkv5.head_norm", {"y": y, "norm": "ln_x"}, [row], **kept).emit()
    for g in gate:
        y = y * (g * op.sigmoid(g))
    return [op.astype(y, part.compute), *state.results()]


def decay_and_bonus(part: Part, width: int) -> tuple[Tensor, Tensor]:
    """w in (0, 1), [D] or each token's [T, D]; and u [D]; of a `rwkv5.wkv`."""
    decay = part.tensor("decay")
    if part.attrs["fixed"]:
        decay = op.reshape(decay, (width,))
    return op.exp(op.negative(op.exp(decay))), op.reshape(part.tensor("first"), (width,))


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    "rwkv4.channel_mix": rwkv4.channel_mix,
    "rwkv4.gated_residual": rwkv4.gated_residual,
    "rwkv5.time_mix": time_mix,
    "rwkv5.wkv": wkv,
}
