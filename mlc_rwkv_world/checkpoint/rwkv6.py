"""The tensors of an RWKV-6, by their canonical names.

BlinkDL and Hugging Face multiply by its matrices of low rank from the left, x W; ModelScope's `.st`
files have them transposed, and `time_mix` where the others say `time_maa`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.layout import Sizes
from mlc_rwkv_world.checkpoint.rwkv5 import BONUS, FIRST, TUNED_STATE
from mlc_rwkv_world.checkpoint.stored import StoredTensor

MODEL_TYPES: tuple[str, ...] = ("rwkv6", "rwkv_world")
RESCALE_EVERY = 6
# The inputs that are mixed, in the order of the rows of `time_maa_w2`.
MIXES = "wkvrg"
_MIX_1, _MIX_2 = "attention.time_maa_w1", "attention.time_maa_w2"
_DECAY_1, _DECAY_2 = "attention.time_decay_w1", "attention.time_decay_w2"
MEASURED: tuple[str, ...] = (FIRST, f"{_MIX_1}.weight", f"{_DECAY_1}.weight")
FIELDS = {"head_size": "head_size"}
UNUSED: tuple[str, ...] = (TUNED_STATE,)
# What ModelScope's files call what; the right side has the end of the canonical name.
_MODELSCOPE = {
    **{f"attention.time_mix_{x}": f"attention.time_maa_{x}" for x in ("x", "w", "w1", "w2")},
    **{
        f"{branch}.time_mix_{part}": f"{branch}.time_maa_{part[0]}"
        for branch in ("attention", "feed_forward")
        for part in ("key", "value", "receptance", "gate")
    },
}


def adapted(path: Path, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Matrices of low rank as ours lie, one for each input that is mixed."""
    turned = any(name.endswith(".time_mix_w1") for name in tensors)
    found: dict[str, StoredTensor] = {}
    for given, tensor in tensors.items():
        block, rest = _divided(given)
        rest = _MODELSCOPE.get(rest, rest) if turned else rest
        if rest == BONUS and f"{block}{FIRST}" not in tensors:
            rest = FIRST
        if rest == _MIX_2 and len(tensor.shape) == 3 and tensor.shape[0] == len(MIXES):
            for number, mix in enumerate(MIXES):
                part = tensor.part(number)
                found[f"{block}{_MIX_2}.{mix}.weight"] = part if turned else part.transposed()
        elif rest in (_MIX_1, _DECAY_1, _DECAY_2):
            found[f"{block}{rest}.weight"] = tensor if turned else tensor.transposed()
        else:
            found[f"{block}{rest}"] = tensor
    return found


def _divided(name: str) -> tuple[str, str]:
    """`blocks.<i>.` and the rest of a name in a block."""
    at = name.find(".", len("blocks.")) + 1 if name.startswith("blocks.") else 0
    return name[:at], name[at:]


def measured(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The size of a head, and both ranks; configurations may be wrong."""
    return {
        "head_size": tensors[f"blocks.0.{FIRST}"].shape[1],
        "mix_low_rank_dim": tensors[f"blocks.0.{_MIX_1}.weight"].shape[0] // len(MIXES),
        "decay_low_rank_dim": tensors[f"blocks.0.{_DECAY_1}.weight"].shape[0],
    }


def block_shapes(sizes: Sizes, number: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one block beside its first normalizations, in the model's order."""
    width, inner, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_size
    vector, mixing, decay = (width,), sizes.mix_low_rank_dim, sizes.decay_low_rank_dim
    products = ("receptance", "key", "value", "gate", "output")
    return {
        **{f"attention.time_maa_{mix}": vector for mix in f"x{MIXES}"},
        f"{_MIX_1}.weight": (len(MIXES) * mixing, width),
        **{f"{_MIX_2}.{mix}.weight": (width, mixing) for mix in MIXES},
        "attention.time_decay": vector,
        f"{_DECAY_1}.weight": (decay, width),
        f"{_DECAY_2}.weight": (width, decay),
        FIRST: (width // head, head),
        **{f"attention.{part}.weight": (width, width) for part in products},
        "attention.ln_x.weight": vector,
        "attention.ln_x.bias": vector,
        **{f"feed_forward.time_maa_{part}": vector for part in "kr"},
        "feed_forward.key.weight": (inner, width),
        "feed_forward.receptance.weight": (width, width),
        "feed_forward.value.weight": (width, inner),
    }
