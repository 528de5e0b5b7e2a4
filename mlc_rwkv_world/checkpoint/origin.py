"""Where a checkpoint's files came from, and so how to get them once more."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.atomic import write_file
from mlc_rwkv_world.checkpoint.wording import quoted

RECORD = ".hub.json"
_MAX_RECORD = 4 << 20


@dataclass
class Record:
    """What a folder was downloaded from, and the etag and size of every complete file."""

    source: str
    revision: str
    files: dict[str, list[Any]]

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in `folder`, or None where it is damaged."""
        path = folder / RECORD
        # A pipe or a device would block or never end.
        if not path.is_file():
            return None
        with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
            match json.loads(file.read(_MAX_RECORD)):
                case {"source": str(source), "revision": str(revision), "files": dict(files)}:
                    return cls(source, revision, files)
        return None

    def write(self, folder: Path) -> None:
        write_file(folder / RECORD, json.dumps(asdict(self), indent=2).encode())

    def has(self, folder: Path, name: str, etag: str | None = None) -> bool:
        """Whether `name` is complete, and of `etag` where one is given."""
        known = self.files.get(name)
        path = folder / name
        return (
            isinstance(known, list)
            and len(known) == 2
            and path.is_file()
            and [known[0] if etag is None else etag, path.stat().st_size] == known
        )


def snapshot_of(path: Path) -> Path | None:
    """The folder `models--owner--name` of the hub's cache, where `path` is in a snapshot there."""
    for folder in (path, *path.parents):
        repo = folder.parent.parent
        if folder.parent.name == "snapshots" and repo.name.startswith("models--"):
            return repo
    return None


def fetch_again(path: Path) -> str:
    """What to do about the damaged file or folder `path`, as a sentence.

    What this package or the hub's own tools fetched is there already when it is asked for again,
    so that has to go first.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / RECORD).is_file():
        return f"Remove {quoted(folder, 300)}: the same command then downloads it again."
    if (cached := snapshot_of(path)) is not None:
        return (
            f"It is in the hub's cache: remove {quoted(cached, 300)} there, and download it again."
        )
    return "Download or copy it again."
