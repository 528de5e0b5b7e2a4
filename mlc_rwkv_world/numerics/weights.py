"""Where a model's parameters come from, one operation's at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.compiler.export import ParameterSpec, parameters
from mlc_rwkv_world.convert.weights import converted, source_name
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.runtime.parameters import MappedShards
from mlc_rwkv_world.storage import Format, Stored
from mlc_rwkv_world.storage.groups import dequantize
from mlc_rwkv_world.storage.stored import matrix_of

Array = NDArray[Any]
# Matrices are widened in slices, so that temporaries stay small beside the matrix itself.
_SLICE_VALUES = 1 << 22


class StoredWeights(abc.ABC):
    """A model's parameters as its format stores them, which a reference reads as floats."""

    def __init__(self, config: ModelConfig, fmt: Format) -> None:
        self.format = fmt
        # What a parameter is stored as: itself, or a matrix's tensors.
        self.stored: dict[str, list[ParameterSpec]] = {}
        for spec in parameters(config, fmt):
            self.stored.setdefault(matrix_of(spec.name), []).append(spec)

    @abc.abstractmethod
    def read(self, specs: Sequence[ParameterSpec]) -> list[Array]:
        """What one parameter is stored as, good until the next is read; nothing else keeps it."""

    def quantized(self, name: str) -> bool:
        """Whether a matrix is stored in integers."""
        return self._how(name).bits > 0

    def vector(self, name: str) -> Array:
        (stored,) = self.read(self.stored[name])
        return stored

    def rows(self, name: str, ids: Array) -> Array:
        return dequantize([part[ids] for part in self.read(self.stored[name])], self._how(name))

    def slices(self, name: str) -> Iterator[Array]:
        tensors, how = self.read(self.stored[name]), self._how(name)
        step = max(1, _SLICE_VALUES // (tensors[0].shape[1] * how.per_element))
        for begin in range(0, len(tensors[0]), step):
            yield dequantize([part[begin : begin + step] for part in tensors], how)

    def _how(self, name: str) -> Stored:
        stored = self.stored[name][0].stored
        assert stored is not None, f"{name} is no matrix"
        return stored


class CheckpointWeights(StoredWeights):
    """A checkpoint's tensors, converted to a format as they are read."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, fmt: Format) -> None:
        super().__init__(config, fmt)
        self.checkpoint = checkpoint
        self.config = config

    def read(self, specs: Sequence[ParameterSpec]) -> list[Array]:
        source = source_name(specs[0].name)
        return converted(self.checkpoint, source, specs, self.config, self.format)


class ArtifactWeights(StoredWeights):
    """An artifact's parameters where they lie in the files, whose pages are given back."""

    def __init__(self, index: ParameterIndex, config: ModelConfig, fmt: Format) -> None:
        super().__init__(config, fmt)
        index.check_files()
        for spec in chain.from_iterable(self.stored.values()):
            found = index.tensors.get(spec.name)
            if found is None or (found.shape, found.dtype) != (spec.shape, spec.dtype):
                holds = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise ArtifactError(
                    f"{index.folder} holds {holds} as {spec.name!r}, where its configuration asks "
                    f"for {spec.dtype} {list(spec.shape)}. Build or copy the artifact again."
                )
        self._shards = MappedShards(index)
        self._given: Sequence[ParameterSpec] = ()

    def read(self, specs: Sequence[ParameterSpec]) -> list[Array]:
        for spec in self._given:
            self._shards.forget(spec.name)
        self._given = specs
        return [self._shards.array(spec.name) for spec in specs]
