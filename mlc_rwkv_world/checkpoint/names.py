"""The names of tensors: three spellings, and what wrappers of training put around them.

Canonical are Hugging Face's names of RWKV-4, and BlinkDL's of what later versions added. BlinkDL's
files spell shorter; Hugging Face's of RWKV-7 are those of flash-linear-attention (fla).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

# Letters of the pairs of low rank in RWKV-7, and of the inputs that it mixes.
_PAIRS, _MIXES = "wavg", "rwkvag"

# What files write for the beginning of a name in a block, and the canonical form.
_BLINKDL = {
    "ln0": "pre_ln",
    "att": "attention",
    "ffn": "feed_forward",
    "att.time_mix_k": "attention.time_mix_key",
    "att.time_mix_v": "attention.time_mix_value",
    "att.time_mix_r": "attention.time_mix_receptance",
    "att.time_mix_g": "attention.time_mix_gate",
    "ffn.time_mix_k": "feed_forward.time_mix_key",
    "ffn.time_mix_r": "feed_forward.time_mix_receptance",
    **{f"att.{x}{n}": f"attention.{x}{n}.weight" for x in _PAIRS for n in (1, 2)},
}
_FLA = {
    "pre_norm": "pre_ln",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn": "attention",
    "ffn": "feed_forward",
    "attn.r_proj": "attention.receptance",
    "attn.k_proj": "attention.key",
    "attn.v_proj": "attention.value",
    "attn.o_proj": "attention.output",
    "attn.g_norm": "attention.ln_x",
    **{f"attn.{x}_lora.lora.0": f"attention.{x}1" for x in _PAIRS},
    **{f"attn.{x}_lora.lora.2": f"attention.{x}2" for x in _PAIRS},
    **{f"attn.{x}_lora.lora.2.bias": f"attention.{x}0" for x in _PAIRS},
}
# The same for what stands beside the blocks, in all spellings.
_BESIDE = {"emb": "embeddings", "norm": "ln_out", "lm_head": "head"}

# Where a model's own names begin. What stands before them names whatever held the model.
_ROOTS = frozenset({"emb", "embeddings", "blocks", "ln_out", "head"})
_FLA_MODULES = frozenset(name.partition(".")[0] for name in _FLA)
# Matrices that BlinkDL multiplies from the left, x W.
_TURNED = re.compile(rf"att\.[{_PAIRS}][12]")
# One tensor of the ratios of all mixes, a row each.
ALL_MIXES = "attention.x_x"
MIXES = tuple(f"attention.x_{x}" for x in _MIXES)

# Data-parallel, compiled and checkpointed modules, which can stand at any depth.
_WRAPPERS = frozenset(
    {
        "module",
        "_forward_module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)

HEAD = "head.weight"
EMBEDDINGS = "embeddings.weight"


def canonical_name(name: str) -> str:
    """The one name of a tensor, without the prefixes of whatever wrapped it."""
    parts = _unwrapped(name)
    found = _in_block(parts)
    if found is None:
        return _renamed(".".join(parts), _BESIDE)
    spelling, number, rest = found
    return f"blocks.{number}.{_renamed(rest, spelling)}"


def is_turned(name: str) -> bool:
    """Whether the file has the transpose of the canonical tensor under this name of its own."""
    found = _in_block(_unwrapped(name))
    return found is not None and _TURNED.fullmatch(found[2]) is not None


def _in_block(parts: Sequence[str]) -> tuple[Mapping[str, str], str, str] | None:
    """The spelling of a block's tensor, the block's number, and the name inside the block."""
    if len(parts) < 3 or not parts[1].isdecimal():
        return None
    if parts[0] == "blocks":
        return _BLINKDL, parts[1], ".".join(parts[2:])
    # Other libraries' models have layers too.
    if parts[0] == "layers" and parts[2] in _FLA_MODULES:
        return _FLA, parts[1], ".".join(parts[2:])
    return None


def _unwrapped(name: str) -> list[str]:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    begin = next((at for at in range(len(parts)) if _is_root(parts[at:])), 0)
    return parts[begin:]


def _is_root(parts: Sequence[str]) -> bool:
    first, *rest = parts
    if first == "layers":
        return _in_block(parts) is not None
    if first in ("norm", "lm_head"):
        return rest in (["weight"], ["bias"])
    return first in _ROOTS


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with the longest beginning that the table has replaced."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        beginning = ".".join(parts[:end])
        if beginning in table:
            return ".".join([table[beginning], *parts[end:]])
    return name


def is_models_own(canonical: str) -> bool:
    """Whether a tensor of this canonical name can be part of an RWKV."""
    return canonical.split(".", 1)[0] in _ROOTS


def speller(found: Mapping[str, str]) -> Callable[[str], str]:
    """What spells canonical names as the file does whose names are `found`, by canonical name.

    A name that does not stand there is spelled as it would, going by those that do.
    """
    habits: Counter[tuple[str, Callable[[str], str]]] = Counter()
    for canonical, name in found.items():
        spellings = [spell(canonical) for spell in _SPELLINGS]
        for in_file, spell in zip(spellings, _SPELLINGS, strict=True):
            # What several spell alike tells nothing.
            if name.endswith(in_file) and spellings.count(in_file) == 1:
                habits[name.removesuffix(in_file), spell] += 1
    (prefix, spell), _ = habits.most_common(1)[0] if habits else (("", str), 0)

    def spelled(canonical: str) -> str:
        if canonical in found:
            return found[canonical]
        # In Hugging Face's layouts the head stands beside the rest.
        before = prefix.removesuffix("rwkv.") if canonical == HEAD else prefix
        if spell is _fla_name and canonical == HEAD:
            before = prefix.removesuffix("model.")
        return before + spell(canonical)

    return spelled


def _blinkdl_name(canonical: str) -> str:
    return _spelled(canonical, "blocks", _BLINKDL, {"embeddings": "emb"})


def _fla_name(canonical: str) -> str:
    return _spelled(canonical, "layers", _FLA, {"ln_out": "norm", "head": "lm_head"})


def _spelled(
    canonical: str, blocks: str, table: Mapping[str, str], beside: Mapping[str, str]
) -> str:
    found = _in_block(canonical.split("."))
    if found is None:
        return _renamed(canonical, beside)
    _, number, rest = found
    inverse = {name: in_file for in_file, name in table.items()}
    return f"{blocks}.{number}.{_renamed(rest, inverse)}"


_SPELLINGS: tuple[Callable[[str], str], ...] = (str, _blinkdl_name, _fla_name)
