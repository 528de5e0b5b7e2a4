"""Opens a checkpoint, whatever layout it comes in, and reads its tensors one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.checkpoint.file_kind import kind_of
from mlc_rwkv_world.checkpoint.folder import CONFIG, WeightFiles, find_weights, read_json
from mlc_rwkv_world.checkpoint.hub_cache import name_in_cache
from mlc_rwkv_world.checkpoint.names import EMBEDDINGS, HEAD, canonical_name, is_turned
from mlc_rwkv_world.checkpoint.origin import fetch_again, snapshot_of
from mlc_rwkv_world.checkpoint.rwkv5 import TUNED_STATE
from mlc_rwkv_world.checkpoint.safetensors_file import read_safetensors_file
from mlc_rwkv_world.checkpoint.shape import LAYOUTS, ModelShape, apply_config, shape_of_tensors
from mlc_rwkv_world.checkpoint.stored import StoredTensor
from mlc_rwkv_world.checkpoint.torch_file import read_torch_file
from mlc_rwkv_world.checkpoint.variants import refuse_variants
from mlc_rwkv_world.checkpoint.version import rwkv_version
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError, NotFoundError


@dataclass(frozen=True)
class Checkpoint:
    """An RWKV World model that lies in files, complete and of consistent shapes.

    No file is kept open, so it can be shared between threads and processes, and tensors
    can be read in any order and again.
    """

    path: Path
    name: str
    version: int
    config: ModelShape
    files: tuple[Path, ...]
    _shapes: Mapping[str, tuple[int, ...]]
    _tensors: Mapping[str, StoredTensor]

    @property
    def holds_tuned_state(self) -> bool:
        """Whether a state that the model was tuned with lies beside it."""
        return f"blocks.0.{TUNED_STATE}" in self._tensors

    def names(self) -> list[str]:
        """Canonical tensor names in the model's order, the same for every layout."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` gives: one axis for vectors."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """The type in the file: "float32", "float16", "bfloat16" or "float64"."""
        return self._tensors[name].dtype

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Tensor `name` as a new float32 array of `shape(name)`.

        Needs memory for that array and a few megabytes. Raises CheckpointError if a value is
        not finite, or if the bytes do not match the checksum that torch stored with them.
        """
        return self._tensors[name].read().reshape(self._shapes[name])


def open_checkpoint(path: Path | str, *, prefer_safetensors: bool = True) -> Checkpoint:
    """Opens a folder in Hugging Face layout, a folder with one .pth, or a single weight file.

    Reads tables of contents only, no weights. A folder's config.json is heeded, a single
    file is taken alone: its sizes come from its tensors. Where a folder holds both
    safetensors and .bin, `prefer_safetensors` chooses.

    Raises NotFoundError if nothing is at `path`, CheckpointError if what is there is not a
    complete World model of a version that is built here.
    """
    path = Path(path)
    config_path = path / CONFIG
    config = {}
    try:
        is_there, is_folder = path.exists(), path.is_dir()
        if is_folder:
            weights = find_weights(path, prefer_safetensors=prefer_safetensors)
            if config_path.exists():
                config = read_json(config_path)
        else:
            weights = WeightFiles((path,))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not is_there:
        raise NotFoundError(f"{path} is not there: no such file or folder.")

    tensors = _collect(path, weights)
    refuse_variants(path, config_path, config, tensors)
    version = rwkv_version(tensor.name for tensor in tensors.values())
    if config.get("tie_word_embeddings") is True:
        _tie(tensors)
    tensors = dict(LAYOUTS[version].adapted(path, tensors))
    shape = apply_config(path, config_path, config, shape_of_tensors(path, tensors, version))
    return Checkpoint(
        path=path,
        name=name_of(path, is_folder=is_folder),
        version=version,
        config=shape,
        files=weights.files,
        _shapes=shape.tensor_shapes(),
        _tensors=tensors,
    )


def name_of(path: Path, *, is_folder: bool) -> str:
    """What the checkpoint at `path` is called, in the hub's cache by the name of its repository."""
    named = path if path.name not in ("", "..") else path.resolve()
    if not is_folder:
        return named.stem
    cached = snapshot_of(named)
    return named.name if cached is None else name_in_cache(cached, named)


def _tie(tensors: dict[str, StoredTensor]) -> None:
    """Lets the head or the embedding, whichever was left out, be the other."""
    for absent, other in ((HEAD, EMBEDDINGS), (EMBEDDINGS, HEAD)):
        if absent not in tensors and other in tensors:
            tensors[absent] = tensors[other]


def _collect(path: Path, weights: WeightFiles) -> dict[str, StoredTensor]:
    """Every tensor of the files by canonical name."""
    tensors: dict[str, StoredTensor] = {}
    for file in weights.files:
        read_file = read_torch_file if kind_of(file) == "torch" else read_safetensors_file
        for tensor in read_file(file):
            name = canonical_name(tensor.name)
            if name in tensors:
                raise CheckpointError(
                    f"{file} holds tensor {quoted(tensor.name)}, which "
                    f"{tensors[name].region.path.name} holds already as "
                    f"{quoted(tensors[name].name)}: every tensor must be there once."
                )
            owner = weights.owner
            if owner is not None and owner.get(tensor.name) != file.name:
                raise CheckpointError(
                    f"{file} holds tensor {quoted(tensor.name)}, which the index of {path} "
                    f"places in {quoted(owner.get(tensor.name))}: the files do not belong together."
                )
            tensors[name] = tensor.transposed() if is_turned(tensor.name) else tensor
    for name, shard in (weights.owner or {}).items():
        if canonical_name(name) not in tensors:
            raise CheckpointError(
                f"{path / shard} lacks tensor {quoted(name)}, which the index places there: the "
                f"files do not belong together. {fetch_again(path)}"
            )
    return tensors
