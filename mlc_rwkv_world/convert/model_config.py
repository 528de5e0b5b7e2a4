"""The configuration that a checkpoint's model is built with."""

from __future__ import annotations

from typing import Any

from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format


def model_config(checkpoint: Checkpoint, fmt: Format, **choices: Any) -> ModelConfig:
    """The checkpoint's sizes in a format; `choices` are fields of `ModelConfig` for the rest.

    Raises UsageError where a field has a value that cannot be.
    """
    shape = checkpoint.config
    return ModelConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        vocab_size=shape.vocab_size,
        attention_hidden_size=shape.attention_hidden_size,
        model_version=checkpoint.version,
        layer_norm_epsilon=shape.layer_norm_epsilon,
        rescale_every=shape.rescale_every if fmt.rescales else 0,
        **choices,
    )
