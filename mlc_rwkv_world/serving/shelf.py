"""Checkpoints in a folder, which a server finds again when it begins anew.

Each model has a folder of its own there, named by its identity; a file is a state as `State.save`
writes it, with the ids that it has read. They are what was said: only their owner may read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.errors import RwkvWorldError
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.state_file import MAX_EXTRA_BYTES, StateFile
from mlc_rwkv_world.serving.cache import Content, Ids

DEFAULT_BYTES = 8 << 30
_SUFFIX = ".state"
_IDS = "ids"
# Checkpoints that wait to be written; more are left out.
_WAITING = 16


class Folder:
    """A `cache.Shelf`. Files are written by a thread of its own, beyond `most_bytes` the oldest go.

    Where the disk is full or fails, that is said once, and nothing more is written.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        complain: Callable[[str], None],
        most_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Raises StorageError where the folder cannot be made."""
        self._engine = engine
        self._complain = complain
        self._most_bytes = most_bytes
        self._folder = folder / engine.identity[:32]
        with storing(folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._jobs: queue.Queue[tuple[Ids, Content] | None] = queue.Queue(_WAITING)
        self._writes = True
        self._thread = threading.Thread(target=self._run, name="shelf", daemon=True)
        self._thread.start()

    def keep(self, origin: str, ids: Ids, content: Content) -> None:
        """Write a checkpoint soon, unless it begins from a state that only this process knows."""
        if origin or not self._writes or ids.nbytes > MAX_EXTRA_BYTES // 2:
            return
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait((ids, content))

    def fetch(self, origin: str, ids: Ids) -> Content | None:
        """A checkpoint's content; None where the file is gone, damaged or another's."""
        path = self._path(ids)
        try:
            file = StateFile.read(path, model=self._engine.identity, shape=self._engine.state_shape)
            found = file.extra.get(_IDS)
            if origin or found is None or not np.array_equal(found, ids):
                return None
            os.utime(path)
        except (RwkvWorldError, OSError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return file.state

    def kept(self) -> Iterator[tuple[str, Ids]]:
        """The ids of all files that can be read, from the oldest on."""
        from safetensors import SafetensorError, safe_open

        for path in _by_age(self._folder):
            try:
                with safe_open(path, "numpy") as file:
                    ids = file.get_tensor(_IDS)
            except (SafetensorError, OSError):
                continue
            if ids.dtype == np.int32 and ids.ndim == 1 and len(ids):
                yield "", ids

    def close(self) -> None:
        """Write what waits, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._writes:
                continue
            ids, content = job
            try:
                path = self._path(ids)
                if not path.exists():
                    StateFile(self._engine.identity, content, {_IDS: ids}).write(path)
                    self._make_room()
            except (RwkvWorldError, OSError) as error:
                self._writes = False
                self._complain(f"note: the cache's folder is not written any more: {error}")

    def _path(self, ids: Ids) -> Path:
        return self._folder / f"{hashlib.sha256(ids.tobytes()).hexdigest()}{_SUFFIX}"

    def _make_room(self) -> None:
        files = _by_age(self._folder)
        size = sum(path.stat().st_size for path in files)
        for path in files:
            if size <= self._most_bytes:
                return
            size -= path.stat().st_size
            path.unlink()


def _by_age(folder: Path) -> list[Path]:
    """The files of checkpoints, from the oldest on."""
    files = [path for path in folder.iterdir() if path.suffix == _SUFFIX and path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime)
