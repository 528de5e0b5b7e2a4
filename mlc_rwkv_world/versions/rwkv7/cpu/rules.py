"""RWKV-7 on a CPU: a block is seven kernels for a step, of which five run in parallel.

For a prompt it is nine, which all do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.cpu import channel_mix as channel_mix_kernels
from mlc_rwkv_world.kernels.cpu.branch import Branch
from mlc_rwkv_world.kernels.emitter import Emitter, Rule
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.storage.stored import ROWS
from mlc_rwkv_world.versions.rwkv7.cpu.heads import heads
from mlc_rwkv_world.versions.rwkv7.cpu.products import products
from mlc_rwkv_world.versions.rwkv7.parts import MIXES

_LARGE = ("receptance", "key", "value")


def _suits(part: Part) -> bool:
    """Heads and ranks are whole blocks of rows."""
    sizes = [part.attrs["head_size"], *part.attrs["ranks"].values()]
    return Branch.suits(part) and all(size % ROWS == 0 for size in sizes)


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not _suits(part):
        return None
    branch, shared = Branch(part, emit), "value_first" in part
    blends, ranks = dict(zip(MIXES, branch.mix(), strict=True)), part.attrs["ranks"]
    small = "wavg" if shared else "wag"
    first, second = [f"{n}1" for n in small], [f"{n}2" for n in small]
    roles = [*_LARGE, *first]
    args = [*(blends[n] for n in f"rkv{small}"), *(part.tensor(role) for role in roles)]
    outs = [branch.rows] * len(_LARGE) + [branch.input(ranks[n]) for n in small]
    r, k, v, *hidden = branch.products(products, args, outs, *roles)
    vectors = [f"{n}0" for n in small if n != "g"] + ["k_k", "k_a", "r_k", "ln_x"]
    given = [r, k, v, *part.tensors("value_first"), *hidden]
    after = branch.by_head(heads, given, second, vectors, shared=shared)
    # Block 0's value is what the others take some of.
    return [after, *([] if shared else [v]), branch.state]


def channel_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not Branch.suits(part):
        return None
    branch = Branch(part, emit)
    args, hidden = [*branch.mix(), part.tensor("key")], branch.input(part.attrs["hidden"])
    (key,) = branch.products(channel_mix_kernels.key, args, [hidden], "key")
    args = [key, part.tensor("value"), branch.x]
    kernel = channel_mix_kernels.sparse_residual
    after = branch.products(kernel, args, [branch.rows], "value")
    return [*after, branch.state]


RULES: Mapping[str, Rule] = {"rwkv7.channel_mix": channel_mix, "rwkv7.time_mix": time_mix}
