"""Converts a checkpoint tensor by tensor: rescaled, quantized, and written as it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.compiler.export import ParameterSpec, build_id
from mlc_rwkv_world.convert.shards import ShardWriter
from mlc_rwkv_world.errors import CheckpointError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.storage.groups import quantize
from mlc_rwkv_world.storage.stored import matrix_of
from mlc_rwkv_world.versions.table import version_of

Progress = Callable[[str, int], None]


def source_name(name: str) -> str:
    """The checkpoint's name for the tensor behind a stored parameter."""
    name = matrix_of(name.removeprefix("model."))
    return f"blocks.0.{name}" if name.startswith("pre_ln.") else name


def convert(
    checkpoint: Checkpoint,
    specs: Sequence[ParameterSpec],
    config: ModelConfig,
    fmt: Format,
    folder: Path,
    progress: Progress,
) -> None:
    """Writes every parameter of `specs` and the index into `folder`.

    Holds one tensor of the checkpoint, as float32, and what it becomes. `progress` is called
    after each one with its name and its count of values.
    """
    values = 0
    with ShardWriter(folder) as writer:
        for name, group in _by_source(specs):
            tensors = converted(checkpoint, name, group, config, fmt)
            for spec, tensor in zip(group, tensors, strict=True):
                writer.add(spec.name, tensor)
            count = math.prod(checkpoint.shape(name))
            values += count
            progress(name, count)
        writer.finish(values, build_id(config, fmt, specs))


def converted(
    checkpoint: Checkpoint,
    name: str,
    group: Sequence[ParameterSpec],
    config: ModelConfig,
    fmt: Format,
) -> list[NDArray[Any]]:
    """What the checkpoint's tensor `name` becomes: the parameters `group` that come from it."""
    weight = _rescale(checkpoint.read(name), name, config)
    tensors = _stored(weight, group, fmt, checkpoint, name)
    for spec, stored in zip(group, tensors, strict=True):
        if stored.shape != spec.shape or str(stored.dtype) != spec.dtype:
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {weight.shape}, which gives {spec.name} "
                f"{stored.shape}; the model's configuration asks for {spec.shape}."
            )
    return tensors


def _by_source(specs: Sequence[ParameterSpec]) -> Iterator[tuple[str, list[ParameterSpec]]]:
    group: list[ParameterSpec] = []
    for spec in specs:
        if group and source_name(spec.name) != source_name(group[0].name):
            yield source_name(group[0].name), group
            group = []
        group.append(spec)
    if group:
        yield source_name(group[0].name), group


def _rescale(weight: NDArray[np.float32], name: str, config: ModelConfig) -> NDArray[np.float32]:
    """Divides the blocks' two output products as `rescale_every` asks (a power of two)."""
    parts = name.split(".", 2)
    if parts[0] == "blocks":
        halvings = config.halvings(int(parts[1]))
        if halvings and parts[2] in version_of(config.model_version).halved_outputs:
            weight *= np.float32(0.5**halvings)
    return weight


def _stored(
    weight: NDArray[np.float32],
    group: Sequence[ParameterSpec],
    fmt: Format,
    checkpoint: Checkpoint,
    name: str,
) -> list[NDArray[Any]]:
    matrix = group[0].stored
    with np.errstate(over="ignore"):
        if matrix is None:
            stored = [weight.astype(group[0].dtype, copy=False)]
        else:
            stored = quantize(weight, matrix)
    floats = stored[-1]
    if floats.dtype == np.float16 and not np.isfinite(floats).all():
        raise CheckpointError(
            f"{checkpoint.path}: {name} holds {np.abs(weight).max():g}, more than float16 can; "
            f"{fmt.name} cannot store it. Use a format with float32 in its name."
        )
    return stored
