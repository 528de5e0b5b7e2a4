"""The names of tensors: two spellings, and what wrappers of training put around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

# BlinkDL's name for a part of a tensor's name, and Hugging Face's.
_HF_PARTS = {
    "emb": "embeddings",
    "ln0": "pre_ln",
    "att": "attention",
    "ffn": "feed_forward",
    "time_mix_k": "time_mix_key",
    "time_mix_v": "time_mix_value",
    "time_mix_r": "time_mix_receptance",
}
_BLINKDL_PARTS = {hf: blinkdl for blinkdl, hf in _HF_PARTS.items()}

# Where a model's own names begin. What stands before them names whatever held the model.
_ROOTS = frozenset({"emb", "embeddings", "blocks", "ln_out", "head"})

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
    """The one name of a tensor: Hugging Face's, without the prefixes of whatever wrapped it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    begin = next((place for place, part in enumerate(parts) if part in _ROOTS), 0)
    return ".".join(_HF_PARTS.get(part, part) for part in parts[begin:])


def is_models_own(canonical: str) -> bool:
    """Whether a tensor of this canonical name can be part of an RWKV-4."""
    return canonical.split(".", 1)[0] in _ROOTS


def speller(found: Mapping[str, str]) -> Callable[[str], str]:
    """What spells canonical names as the file does whose names are `found`, by canonical name.

    A name that does not stand there is spelled as it would, going by those that do.
    """
    habits: Counter[tuple[str, bool]] = Counter()
    for canonical, name in found.items():
        blinkdl = _blinkdl_name(canonical)
        for in_file in (blinkdl, canonical):
            if name.endswith(in_file) and blinkdl != canonical:
                habits[name.removesuffix(in_file), in_file == blinkdl] += 1
    (prefix, is_blinkdl), _ = habits.most_common(1)[0] if habits else (("", False), 0)

    def spelled(canonical: str) -> str:
        if canonical in found:
            return found[canonical]
        # In Hugging Face's layout the head stands beside the rest.
        before = prefix.removesuffix("rwkv.") if canonical == HEAD else prefix
        return before + (_blinkdl_name(canonical) if is_blinkdl else canonical)

    return spelled


def _blinkdl_name(canonical: str) -> str:
    return ".".join(_BLINKDL_PARTS.get(part, part) for part in canonical.split("."))
