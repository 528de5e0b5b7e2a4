"""Where a model's parameters come from, one operation's at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.compiler.export import ParameterSpec, parameters
from mlc_rwkv_world.convert.weights import converted, source_name
from mlc_rwkv_world.models.config import ModelConfig
from mlc_rwkv_world.runtime.parameters import MappedShards
from mlc_rwkv_world.storage import Format


class Weights(Protocol):
    """The parameters of a model as its format stores them."""

    def read(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """Parameters by name, good until the next are read; nothing else keeps them."""


class CheckpointWeights:
    """A checkpoint's tensors, converted to a format as they are read."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, fmt: Format) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.format = fmt
        self._groups: dict[str, list[ParameterSpec]] = {}
        for spec in parameters(config, fmt):
            self._groups.setdefault(source_name(spec.name), []).append(spec)

    def read(self, names: Sequence[str]) -> list[NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for source in dict.fromkeys(map(source_name, names)):
            group = self._groups[source]
            tensors = converted(self.checkpoint, source, group, self.config, self.format)
            found |= {spec.name: tensor for spec, tensor in zip(group, tensors, strict=True)}
        return [found[name] for name in names]


class ArtifactWeights:
    """An artifact's parameters where they lie in the files, whose pages are given back."""

    def __init__(self, index: ParameterIndex) -> None:
        index.check_files()
        self._shards = MappedShards(index)
        self._given: Sequence[str] = ()

    def read(self, names: Sequence[str]) -> list[NDArray[Any]]:
        for name in self._given:
            self._shards.forget(name)
        self._given = names
        return [self._shards.array(name) for name in names]
