"""The configuration that a checkpoint's model is built with."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.versions.table import settled


def model_config(checkpoint: Checkpoint, fmt: Format, **choices: Any) -> ModelConfig:
    """The checkpoint's sizes in a format; `choices` are fields of `ModelConfig` for the rest.

    Raises UsageError where a field has a value that cannot be.
    """
    sizes = dataclasses.asdict(checkpoint.config)
    if not fmt.rescales:
        sizes["rescale_every"] = 0
    return settled(ModelConfig(**sizes, **choices))
