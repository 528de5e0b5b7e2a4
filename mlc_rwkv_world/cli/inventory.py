"""What there is on this machine: checkpoints that can be built, and artifacts that can be run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.registry import registered
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.checkpoint import Checkpoint, open_checkpoint
from mlc_rwkv_world.checkpoint.hub_cache import snapshots
from mlc_rwkv_world.errors import RwkvWorldError

CHECKPOINT, ARTIFACT = "checkpoint", "artifact"


@dataclass(frozen=True)
class Entry:
    """A checkpoint or an artifact: `version` is RWKV's, `format` how weights lie, `size` bytes.

    Where it cannot be read, `fault` says why, and version and format are None.
    """

    kind: str
    name: str
    version: int | None
    format: str | None
    size: int
    path: Path
    fault: str | None = None


def artifacts() -> Iterator[Entry]:
    """The artifacts that this user built, the latest first."""
    for folder in registered():
        yield _artifact(folder)


def checkpoints(models: Path) -> Iterator[Entry]:
    """The checkpoints in the folder `models`, and those in the hub's cache that can be built."""
    for path in sorted(models.iterdir()) if models.is_dir() else ():
        if not path.name.startswith("."):
            yield _checkpoint(path)
    for path in snapshots():
        found = _checkpoint(path)
        # The cache holds every kind of model.
        if found.fault is None:
            yield found


def _artifact(folder: Path) -> Entry:
    try:
        config = ChatConfig.read(find(folder).params)
    except RwkvWorldError as error:
        return Entry(ARTIFACT, folder.name, None, None, _size([folder]), folder, str(error))
    size = _size([folder])
    return Entry(ARTIFACT, folder.name, config.model_version, config.quantization, size, folder)


def _checkpoint(path: Path) -> Entry:
    try:
        found = open_checkpoint(path)
    except RwkvWorldError as error:
        return Entry(CHECKPOINT, path.name, None, None, _size([path]), path, str(error))
    kinds = _types(found)
    return Entry(CHECKPOINT, found.name, found.version, kinds, _size(found.files), path)


def _types(checkpoint: Checkpoint) -> str:
    return ", ".join(sorted({checkpoint.dtype(name) for name in checkpoint.names()}))


def _size(places: Iterable[Path]) -> int:
    """Bytes of all files at these places; links below a folder are not followed."""
    total = 0
    for place in places:
        if place.is_file():
            total += place.stat().st_size
        for folder, _, names in os.walk(place):
            total += sum((Path(folder) / name).lstat().st_size for name in names)
    return total
