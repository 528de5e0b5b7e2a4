"""Reads every byte of an artifact and says which files are not as they were built.

No code of the artifact runs: a library is compared with its checksum, never loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlc_rwkv_world.artifact.checksums import read_checksums, sha256
from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.identity import belonging
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, NDARRAY_CACHE, SHA256SUMS, TENSOR_CACHE
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.artifact.search import Found
from mlc_rwkv_world.errors import ArtifactError, RwkvWorldError
from mlc_rwkv_world.runtime.elf import check_library
from mlc_rwkv_world.runtime.sampler import Sampling
from mlc_rwkv_world.tokenizer import WorldTokenizer


@dataclass(frozen=True)
class Verdict:
    """What was found of one file: `fault` is None where it is sound."""

    path: Path
    fault: str | None = None


def verify(found: Found) -> Iterator[Verdict]:
    """Check every file of an artifact, one after another.

    With SHA256SUMS, which our builds write, any change of any file is found. Without it the
    shards' own checksums are held to the index, and the other files are read as loading would.
    """
    try:
        sums = read_checksums(found.folder)
    except RwkvWorldError as error:
        yield Verdict(found.folder / SHA256SUMS, str(error))
        sums = None
    for name, expected in (sums or {}).items():
        yield _compare(found.folder / name, expected)
    yield from _read_all(found, check_shards=sums is None)


def has_checksums(found: Found) -> bool:
    """Whether the artifact carries checksums of all its files."""
    return (found.folder / SHA256SUMS).is_file()


def _compare(path: Path, expected: str) -> Verdict:
    try:
        require_inside(path)
        actual = sha256(path)
    except ArtifactError as error:
        return Verdict(path, str(error))
    except OSError as error:
        return Verdict(path, f"cannot be read: {error.strerror}")
    return Verdict(path, None if actual == expected else "was changed since it was built")


def _read_all(found: Found, *, check_shards: bool) -> Iterator[Verdict]:
    """Read each file as loading the model would; sound files are told once, by their name."""
    params = found.params
    config: list[ChatConfig] = []
    index: list[ParameterIndex] = []

    def read_config() -> None:
        config.append(ChatConfig.read(params))
        Sampling.from_config(config[0])

    yield _read(params / CHAT_CONFIG, read_config)
    name = config[0].tokenizer_file if config else "tokenizer_model"
    yield _read(params / name, partial(_check_vocabulary, params / name))
    index_path = params / TENSOR_CACHE
    if not index_path.is_file():
        index_path = params / NDARRAY_CACHE
    yield _read(index_path, lambda: index.append(ParameterIndex.read(params)))
    for library in found.libraries:
        yield _read(library, partial(_check_library, library, index[0] if index else None))
    if index:
        verdict = _read(index_path, index[0].check_files)
        yield verdict
        if check_shards and verdict.fault is None:
            damaged = set(index[0].damaged_shards())
            for shard in index[0].shards:
                path = index[0].path(shard.file)
                fault = "does not match its checksum in the index" if path in damaged else None
                yield Verdict(path, fault)


def _check_vocabulary(path: Path) -> None:
    require_inside(path)
    WorldTokenizer.from_file(path)


def _check_library(path: Path, index: ParameterIndex | None) -> None:
    check_library(path)
    metadata = read_embedded(path)
    if metadata is None or index is None:
        return
    fault = belonging(metadata, index).fault
    if fault is not None:
        raise ArtifactError(f"does not belong to the parameters here: {fault}")


def _read(path: Path, read: Callable[[], object]) -> Verdict:
    try:
        read()
    except RwkvWorldError as error:
        return Verdict(path, str(error))
    except OSError as error:
        return Verdict(path, f"cannot be read: {error.strerror}")
    return Verdict(path)
