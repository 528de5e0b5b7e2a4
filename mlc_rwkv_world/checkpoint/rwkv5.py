"""The tensors of an RWKV-5, by their canonical names.

There are three: 5.0 without a gate, 5.0 and 5.1 with one decay and one bonus for each head, and 5.2
with those of each channel. The first two are read as the third, each value along its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.layout import Sizes
from mlc_rwkv_world.checkpoint.names import EMBEDDINGS
from mlc_rwkv_world.checkpoint.stored import StoredTensor

MODEL_TYPES: tuple[str, ...] = ("rwkv5", "rwkv", "rwkv_world")
RESCALE_EVERY = 6
MEASURED: tuple[str, ...] = ("attention.time_first",)
FIELDS = {"head_size": "head_size"}
# A tuned state, which some files hold beside the model that it was tuned for.
TUNED_STATE = "attention.time_state"
UNUSED: tuple[str, ...] = (TUNED_STATE,)
# What the first ones call their bonus, of which others hold the logarithm.
BONUS, FIRST, DECAY = "attention.time_faaaa", "attention.time_first", "attention.time_decay"


def adapted(path: Path, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Decays and bonuses as matrices [heads, channels], the bonus under one name."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        first = name.removesuffix(BONUS) + FIRST
        if name.endswith(f".{BONUS}") and first not in tensors:
            found[first] = found.pop(name)
        elif name.endswith(f".{FIRST}") and _by_head(tensor):
            # As `rwkv` 0.8.32 reads it. ModelScope's files have it by channel, and as it is.
            found[name] = replace(tensor, exponential=True)
    embeddings = found.get(EMBEDDINGS)
    if embeddings is None or len(embeddings.shape) != 2:
        return found
    for name, tensor in found.items():
        if name.endswith((f".{FIRST}", f".{DECAY}")) and _by_head(tensor):
            # Where the width is no multiple, the shapes are found wrong later.
            found[name] = tensor.repeated(embeddings.shape[1] // tensor.size)
    return found


def _by_head(tensor: StoredTensor) -> bool:
    """Whether there is a value for each head: [H], [H, 1] or [H, 1, 1]."""
    return 0 < tensor.size == tensor.shape[0]


def measured(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The size of a head, and whether there is a gate; configurations may be wrong."""
    gate = "blocks.0.attention.gate.weight" in tensors
    return {"head_size": tensors[f"blocks.0.{FIRST}"].shape[1], "attention_gate": gate}


def block_shapes(sizes: Sizes, number: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one block beside its first normalizations, in the model's order."""
    width, inner, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_size
    vector, heads = (width,), (width // head, head)
    products = ["receptance", "key", "value", *(["gate"] if sizes.attention_gate else [])]
    return {
        DECAY: heads,
        FIRST: heads,
        **{f"attention.time_mix_{part}": vector for part in products},
        **{f"attention.{part}.weight": (width, width) for part in (*products, "output")},
        "attention.ln_x.weight": vector,
        "attention.ln_x.bias": vector,
        **{f"feed_forward.time_mix_{part}": vector for part in ("key", "receptance")},
        "feed_forward.key.weight": (inner, width),
        "feed_forward.receptance.weight": (width, width),
        "feed_forward.value.weight": (width, inner),
    }
