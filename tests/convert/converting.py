"""Converts a checkpoint as a build does, without a library."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.checkpoint import open_checkpoint
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.convert.model_config import model_config
from mlc_rwkv_world.convert.weights import convert
from mlc_rwkv_world.runtime.parameters import MappedShards
from mlc_rwkv_world.storage import format_named


def convert_to(
    folder: Path, checkpoint: Path, quantization: str, rescale_every: int = 0
) -> dict[str, np.ndarray]:
    """Writes the shards into the new `folder`; the stored tensors by name."""
    opened, fmt = open_checkpoint(checkpoint), format_named(quantization)
    config = dataclasses.replace(model_config(opened, fmt), rescale_every=rescale_every)
    folder.mkdir(parents=True)
    convert(opened, parameters(config, fmt), config, fmt, folder, lambda name, count: None)
    index = ParameterIndex.read(folder)
    return {name: MappedShards(index).array(name) for name in index.tensors}
