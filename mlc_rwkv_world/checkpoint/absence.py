"""Why a checkpoint lacks tensors, which a second download seldom cures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlc_rwkv_world.checkpoint.names import EMBEDDINGS, HEAD, speller
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import CheckpointError

# As RWKV-PEFT, RWKV-LM-LoRA and Hugging Face's peft name what they train.
_LORA = re.compile(r"\.(lora_\w+|bone|disha)\b")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(?:bin|safetensors)")
_NORM_OF_EMBEDDINGS = {"blocks.0.pre_ln.weight", "blocks.0.pre_ln.bias"}


def require_no_lora(path: Path, found: Mapping[str, str]) -> None:
    """Raises CheckpointError where tensors of a LoRA are among `found`.

    `found` has the names in the file by canonical name, here as in `missing`.
    """
    trained = [name for name in found.values() if _LORA.search(name)]
    if not trained:
        return
    beside = EMBEDDINGS in found or HEAD in found
    raise CheckpointError(
        f"{path} holds a LoRA ({listed(trained)}) "
        + (
            "beside the weights that it changes, not merged into them"
            if beside
            else "alone, without the weights of the model that it was trained on"
        )
        + ". Merge the two with the tool that trained it, and give the result."
    )


def missing(path: Path, names: Sequence[str], found: Mapping[str, str]) -> CheckpointError:
    """The error for a checkpoint that lacks the tensors of the canonical `names`."""
    spelled = speller(found)
    lacks = f"{path} lacks the tensors {listed(map(spelled, names))}"
    if (shard := _SHARD.search(path.name)) and int(shard[2]) > 1:
        return CheckpointError(
            f"{lacks}: it is shard {int(shard[1])} of {int(shard[2])}. Give the folder that holds "
            "them all."
        )
    if set(names) <= {HEAD, EMBEDDINGS} and len(names) == 1:
        other = spelled(EMBEDDINGS if names[0] == HEAD else HEAD)
        return CheckpointError(
            f"{lacks}. If its head is tied to its embedding, so that {quoted(other)} is both, put "
            'it into a folder with a config.json that says {"tie_word_embeddings": true}, and '
            "give the folder; else it was saved without that tensor: give a whole checkpoint."
        )
    if set(names) == _NORM_OF_EMBEDDINGS:
        return CheckpointError(
            f"{lacks}: its embeddings were normalized already, as tools do that convert a model "
            "for running it. Give the checkpoint that it was converted from."
        )
    return CheckpointError(
        f"{lacks}. The file is whole and was saved without them: give a checkpoint that holds the "
        "whole model."
    )
