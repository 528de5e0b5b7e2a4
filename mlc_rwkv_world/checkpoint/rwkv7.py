"""The tensors of an RWKV-7, by their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.layout import Sizes
from mlc_rwkv_world.checkpoint.names import ALL_MIXES, MIXES
from mlc_rwkv_world.checkpoint.stored import StoredTensor
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

MODEL_TYPES: tuple[str, ...] = ("rwkv7", "rwkv7_fla", "rwkv_world")
# The residual fits into float16.
RESCALE_EVERY = 0
# Fields of the ranks of the small products, by the letter that their names begin with.
RANKS = {
    "w": "decay_low_rank_dim",
    "a": "a_low_rank_dim",
    "v": "v_low_rank_dim",
    "g": "gate_low_rank_dim",
}
MEASURED: tuple[str, ...] = ("attention.r_k", *(f"attention.{x}1.weight" for x in "wag"))
FIELDS = {"head_size": "head_size", "head_dim": "head_size"}
# BlinkDL's files have block 0's share of its own value.
UNUSED: tuple[str, ...] = tuple(f"attention.{name}" for name in ("v0", "v1.weight", "v2.weight"))


def adapted(path: Path, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The ratios of a block, where they lie in one tensor, as one for each."""
    divided: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(f".{ALL_MIXES}"):
            divided[name] = tensor
            continue
        if tensor.shape[:1] != (len(MIXES),):
            raise CheckpointError(
                f"{path}: tensor {quoted(tensor.name)} has shape {list(tensor.shape)}, expected "
                f"{len(MIXES)} rows. The file is damaged or another model's: use another copy."
            )
        block = name.removesuffix(ALL_MIXES)
        for number, mix in enumerate(MIXES):
            if block + mix in tensors:
                raise CheckpointError(
                    f"{path} holds {quoted(tensor.name)} and {quoted(tensors[block + mix].name)}, "
                    "which is one of its rows: every tensor must be there once."
                )
            divided[block + mix] = tensor.part(number)
    return divided


def measured(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The size of a head, and the ranks of the small products; configurations may be wrong."""
    found = {"head_size": tensors["blocks.0.attention.r_k"].shape[1]}
    for letter, field in RANKS.items():
        block = 1 if letter == "v" else 0
        tensor = tensors.get(f"blocks.{block}.attention.{letter}1.weight")
        # Nothing uses it in a model of one block.
        found[field] = tensor.shape[0] if tensor is not None and len(tensor.shape) == 2 else 0
    return found


def block_shapes(sizes: Sizes, number: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one block beside its first normalizations, in the model's order."""
    width, inner, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_size
    vector = (width,)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(MIXES, vector)
    for letter, field in RANKS.items():
        rank = getattr(sizes, field)
        if letter == "v" and number == 0:
            continue
        if letter != "g":
            shapes[f"attention.{letter}0"] = vector
        shapes[f"attention.{letter}1.weight"] = (rank, width)
        shapes[f"attention.{letter}2.weight"] = (width, rank)
    shapes |= {"attention.k_k": vector, "attention.k_a": vector}
    shapes["attention.r_k"] = (width // head, head)
    for part in ("receptance", "key", "value", "output"):
        shapes[f"attention.{part}.weight"] = (width, width)
    shapes |= {"attention.ln_x.weight": vector, "attention.ln_x.bias": vector}
    shapes["feed_forward.x_k"] = vector
    shapes["feed_forward.key.weight"] = (inner, width)
    shapes["feed_forward.value.weight"] = (width, inner)
    return shapes
