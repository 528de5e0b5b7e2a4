"""What RWKV-6's parts mean, in operators and smaller parts: what runs where no kernel suits.

Roles beyond RWKV-5's: `mix` the shares of the previous input, in the order x, w, k, v, r, g;
`mix_1`, and `mix_w` to `mix_g`, the stored weights that add to them; `decay` the stored time_decay
[D], `decay_1` and `decay_2` the stored weights of what each token adds.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.model.segments import segments_of
from mlc_rwkv_world.model.shared_parts import (
    Decomposition,
    layer_norm,
    product,
    residual_product,
)
from mlc_rwkv_world.model.state import PartState
from mlc_rwkv_world.versions.rwkv5 import parts as rwkv5
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS


def time_mix(part: Part) -> list[Tensor]:
    """Fields of the state: previous input, the heads' matrices."""
    residual, state = part.tensor("x"), PartState(part)
    width, segments = residual.shape[1], segments_of(part, state.batch)
    x = layer_norm(residual, part.tensors("norm"), part.attrs["eps"])
    change = segments.previous(x, state.get(0)) - x
    state.set(0, segments.last(x))
    of_common, *shares = part.tensors("mix")
    common = op.astype(x + change * of_common, part.compute)
    mixing, decay = part.attrs["ranks"]
    hidden = _hidden(part, common, "mix_1", len(MIXES) * mixing)
    mixed = {}
    for letter, share, rows in zip(MIXES, shares, op.split(hidden, len(MIXES), 1), strict=True):
        share = share + product(part, rows, f"mix_{letter}", width, "float32")
        mixed[letter] = op.astype(x + change * share, part.compute)
    hidden = _hidden(part, mixed["w"], "decay_1", decay)
    w = part.tensor("decay") + product(part, hidden, "decay_2", width, "float32")
    blends = [mixed[name[0]] for name in PRODUCTS]
    gated = rwkv5.after_mixes(part, state, blends, w)
    return [residual_product(part, gated, "output", residual), *state.results()]


def _hidden(part: Part, x: Tensor, role: str, rank: int) -> Tensor:
    """`tanh(W x)` of the compute type, [T, rank]."""
    return op.astype(op.tanh(product(part, x, role, rank, "float32")), part.compute)


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    **{name: found for name, found in rwkv5.DECOMPOSITIONS.items() if name != "rwkv5.time_mix"},
    "rwkv6.time_mix": time_mix,
}
