"""Models that are an RWKV but none of the plain World ones, each refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.names import EMBEDDINGS
from mlc_rwkv_world.checkpoint.stored import StoredTensor
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

# Of the tokenizer 20B_tokenizer.json, padded by some to a round number.
_PILE_VOCAB_SIZES = (50277, 50280, 50304)

# What is refused where each of the marks is in some tensor's name, the more special first.
_VARIANTS = (
    ("RWKV-8 (ROSA)", (r"(?i)(?:^|[._])rosa",)),
    ("RWKV-7b (DeepEmbed and attention)", (r"\bs_emb\b", r"\bqkv\.")),
    ("RWKV-7a (DeepEmbed)", (r"\bs_emb\b",)),
    ("a release candidate of RWKV-7 (rc4a or near it)", (r"\btime_(?:aaaaa|misc_\w+)\b",)),
    (
        "a hybrid of RWKV-7 and attention",
        (r"\battn\.(?:x_r|r_k)\b", r"\battn\.q_proj\b"),
    ),
)


def refuse_variants(
    path: Path, config_path: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises CheckpointError, saying which it is, for a variant that no version here reads.

    `tensors` stand under their canonical names; `config` is what `config_path` holds.
    """
    names = [tensor.name for tensor in tensors.values()]
    for what, marks in _VARIANTS:
        found = [next((name for name in names if re.search(mark, name)), None) for mark in marks]
        if None not in found:
            shown = " and ".join(map(quoted, found))
            raise CheckpointError(
                f"{path} is {what}, going by its tensors ({shown}), which is not built here. Give "
                "a plain RWKV World checkpoint."
            )
    if config.get("attn") is not None:
        raise CheckpointError(
            f"{config_path} says attn {quoted(config['attn'])}: the model is a hybrid of RWKV and "
            "attention, which is not built here. Give a plain RWKV World checkpoint."
        )
    embeddings = tensors.get(EMBEDDINGS)
    if embeddings is not None and embeddings.shape[:1] and embeddings.shape[0] in _PILE_VOCAB_SIZES:
        raise CheckpointError(
            f"{path} is a Pile or Raven checkpoint (vocabulary {embeddings.shape[0]}), which "
            "speaks another tokenizer (20B_tokenizer.json); expected an RWKV World checkpoint "
            "(vocabulary 65536)."
        )
