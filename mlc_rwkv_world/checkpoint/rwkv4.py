"""The tensors of an RWKV-4, by their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.layout import Sizes
from mlc_rwkv_world.checkpoint.stored import StoredTensor

MODEL_TYPES: tuple[str, ...] = ("rwkv", "rwkv4", "rwkv_world")
RESCALE_EVERY = 6
MEASURED: tuple[str, ...] = ()
UNUSED: tuple[str, ...] = ()
FIELDS: dict[str, str] = {}


def adapted(path: Path, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """All files have them as the model does."""
    return tensors


def measured(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Sizes beyond those of every version."""
    return {}


def block_shapes(sizes: Sizes, number: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one block beside its first normalizations, in the model's order."""
    width, inner = sizes.hidden_size, sizes.intermediate_size
    vectors = ("decay", "first", "mix_key", "mix_value", "mix_receptance")
    products = ("key", "value", "receptance", "output")
    return {
        **{f"attention.time_{part}": (width,) for part in vectors},
        **{f"attention.{part}.weight": (width, width) for part in products},
        **{f"feed_forward.time_mix_{part}": (width,) for part in ("key", "receptance")},
        "feed_forward.key.weight": (inner, width),
        "feed_forward.receptance.weight": (width, width),
        "feed_forward.value.weight": (width, inner),
    }
