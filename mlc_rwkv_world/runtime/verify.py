"""Reads every byte of an artifact and says which files are not as they were built.

No code of the artifact runs: a library is compared with its checksum, never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlc_rwkv_world.artifact.checksums import fault_of
from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.identity import belonging
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import (
    CHAT_CONFIG,
    LIBRARY_ENDINGS,
    NDARRAY_CACHE,
    SHA256SUMS,
    TENSOR_CACHE,
)
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.artifact.search import Found
from mlc_rwkv_world.errors import ArtifactError, RwkvWorldError
from mlc_rwkv_world.runtime.elf import check_library
from mlc_rwkv_world.runtime.sampler import Sampling
from mlc_rwkv_world.tokenizer import WorldTokenizer


@dataclass(frozen=True)
class Verdict:
    """What was found of one file: `fault` is None where it is sound.

    One that is not `listed` is no part of the artifact, and a fault only where it looks like one.
    """

    path: Path
    fault: str | None = None
    listed: bool = True


def verify(found: Found) -> Iterator[Verdict]:
    """Check every file of an artifact, one after another.

    With SHA256SUMS, which our builds write, any change of any file is found, and a file among the
    parameters or a library that it does not list. Without it the shards' own checksums are held to
    the index, and the other files are read as loading would.
    """
    try:
        sums = found.checksums
    except RwkvWorldError as error:
        yield Verdict(found.folder / SHA256SUMS, str(error))
        yield from _read_all(found, (), check_shards=True)
        return
    for name, expected in (sums or {}).items():
        path = found.folder / name
        yield Verdict(path, fault_of(path, expected))
    if sums is None:
        yield from _read_all(found, found.unlisted, check_shards=True)
        return
    yield from _read_all(found, found.libraries, check_shards=False)
    for path in _unlisted(found.folder, sums):
        part = path.suffix in LIBRARY_ENDINGS or found.params in path.parents
        yield Verdict(path, f"is not listed in {SHA256SUMS}" if part else None, listed=False)


def _unlisted(folder: Path, sums: Iterable[str]) -> Iterator[Path]:
    """What lies in `folder`, at any depth, and is not in its list; a link to a folder is one."""
    listed = {folder / name for name in [*sums, SHA256SUMS]}
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*files, *links]):
            if (path := Path(place, name)) not in listed:
                yield path


def has_checksums(found: Found) -> bool:
    """Whether the artifact carries checksums of all its files."""
    return found.checksums is not None


def _read_all(found: Found, libraries: Iterable[Path], *, check_shards: bool) -> Iterator[Verdict]:
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
    for library in libraries:
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
