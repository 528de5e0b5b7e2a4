"""RWKV-6 on a CPU: RWKV-5 after two more kernels, of a step or a prompt, which make its blends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.kernels.cpu.branch import Branch
from mlc_rwkv_world.kernels.emitter import Emitter, Rule
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.versions.rwkv4.cpu.rules import channel_mix
from mlc_rwkv_world.versions.rwkv5.cpu.rules import after_mixes, suits
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS
from mlc_rwkv_world.versions.rwkv6.cpu.mixes import hidden, mixes


def time_mix(part: Part, emit: Emitter) -> Sequence[Tensor] | None:
    if not suits(part):
        return None
    branch, count = Branch(part, emit), len(MIXES)
    of_common, *shares = part.tensors("mix")
    common, normal, previous = branch.mix_of_previous(of_common)
    args = [common] * count + [part.tensor("mix_1")] * count
    outs = [branch.input(part.attrs["ranks"][0])] * count
    found = branch.products(hidden, args, outs, *["mix_1"] * count)
    second = [f"mix_{letter}" for letter in MIXES]
    args = [normal, previous, *found, *(part.tensor(role) for role in second), *shares]
    outs = [branch.input(branch.rows.static(1))] * count
    blends = dict(zip(MIXES, branch.products(mixes, args, outs, *second), strict=True))
    return after_mixes(branch, [blends[role[0]] for role in PRODUCTS], blends["w"])


RULES: Mapping[str, Rule] = {"rwkv4.channel_mix": channel_mix, "rwkv6.time_mix": time_mix}
