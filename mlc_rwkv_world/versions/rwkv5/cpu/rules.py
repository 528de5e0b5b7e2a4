"""RWKV-5 on a CPU: a block is seven kernels for a step, of which five run in parallel.

For a prompt it is nine, which all do. The channel mix is RWKV-4's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.cpu.branch import Branch
from mlc_rwkv_world.kernels.emitter import Emitter, Rule
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.storage.stored import ROWS
from mlc_rwkv_world.versions.rwkv4.cpu.rules import channel_mix
from mlc_rwkv_world.versions.rwkv5.cpu.heads import heads
from mlc_rwkv_world.versions.rwkv5.cpu.products import products
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS


def suits(part: Part) -> bool:
    """Heads, and ranks where there are any, are whole blocks of rows."""
    sizes = [part.attrs["head_size"], *part.attrs.get("ranks", ())]
    return Branch.suits(part) and all(size % ROWS == 0 for size in sizes)


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not suits(part):
        return None
    branch = Branch(part, emit)
    return after_mixes(branch, branch.mix(), None)


def after_mixes(branch: Branch, blends: list[Tensor], of_token: Tensor | None) -> list[Tensor]:
    """The branch from its products' inputs on, in the order of PRODUCTS.

    `of_token` is what a decay of each token is made from, as RWKV-6's is.
    """
    part = branch.part
    large = [role for role in PRODUCTS if role in part]
    small = [] if of_token is None else ["decay_1"]
    inputs = blends if of_token is None else [*blends, of_token]
    args = [*inputs, *(part.tensor(role) for role in (*large, *small))]
    outs = [branch.rows] * len(large) + [branch.input(part.attrs["ranks"][1]) for _ in small]
    found = branch.products(products, args, outs, *large, *small)
    second = ["decay_2"] if small else []
    vectors = ["decay", "first", "ln_x"]
    options = {"gated": "gate" in part, "fixed": of_token is None}
    after = branch.by_head(heads, found, second, vectors, **options)
    return [after, branch.state]


RULES: Mapping[str, Rule] = {"rwkv4.channel_mix": channel_mix, "rwkv5.time_mix": time_mix}
