"""Files and folders that appear whole or not at all, whatever dies while they are written.

Work goes into a temporary beside its place and moves there at the end. A lock, which the
system drops when its owner dies, keeps two writers of one place apart and tells whoever
comes next that the temporaries it finds belong to nobody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# How often, and after how many seconds, a folder is cleared again that does not stay empty.
_CLEARING = 20
_PAUSE = 0.1
# How the names end of what is written, and of a folder that makes room for another.
_TEMPORARY = ".tmp"
_OLD = ".old"


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`: afterwards it holds the old content or the new, never a part.

    Raises OSError, and leaves no temporary, where the disk is full or the folder read-only.
    """
    if not path.name:
        # The root of a file system, or the current folder.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of the place `path`, which need not exist, while the block runs.

    `waiting` is called once where another process holds it. The lock is a hidden file beside
    `path` that is gone afterwards; OSError where a link or something else is in its place.
    """
    # Whoever only reads is spared it.
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}.lock")
    _require_plain(lock)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        if waiting is not None:
            waiting()
        held.acquire()
    try:
        yield
    finally:
        # Whoever waits for a lock that is removed makes it anew. Windows removes no open file.
        with suppress(OSError):
            lock.unlink(missing_ok=True)
        held.release()


@contextmanager
def replacing_folder(
    path: Path,
    waiting: Callable[[], None] | None = None,
    leaving: Callable[[Path], None] = lambda older: None,
) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path` when the block ends without an error.

    Until then an older `path` stays as it is and usable, and it vanishes only once the new
    one stands, and `leaving` was called with where it is then. The place is locked meanwhile (see
    `locked`); what killed writers left beside it is cleared first. Raises OSError where the folder
    cannot be written.
    """
    # Path.resolve raises where links lead in a circle.
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, waiting):
        recover(path)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _put(temporary, path, leaving)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def recover(path: Path) -> None:
    """Clear what killed writers of `path` left. The caller holds its lock."""
    if not path.exists():
        for old in _beside(path, _OLD):
            # Killed between the two steps of `_put`: the older folder is the good one.
            old.rename(path)
            break
    for leftover in [*_beside(path, _OLD), *_beside(path, _TEMPORARY)]:
        if leftover.is_dir() and not leftover.is_symlink():
            _clear(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove `folder`, into which a killed writer's child, a linker, may still be writing."""
    for _ in range(_CLEARING):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE)
    shutil.rmtree(folder)


def _temporary(path: Path, ending: str = _TEMPORARY) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")


def _beside(path: Path, ending: str) -> list[Path]:
    """What `_temporary` called so for `path`, and nothing that only looks alike."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(ending)}")
    return sorted(other for other in path.parent.iterdir() if name.fullmatch(other.name))


def _put(new: Path, path: Path, leaving: Callable[[Path], None]) -> None:
    """Move the folder `new` to `path`, then remove what stood there."""
    if not path.exists():
        new.rename(path)
        _sync_folder(path.parent)
        return
    old = new
    if not _exchange(new, path):
        # Two steps; `recover` undoes the first if the second never comes.
        old = _temporary(path, _OLD)
        path.rename(old)
        new.rename(path)
    _sync_folder(path.parent)
    leaving(old)
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system or file system cannot."""
    if sys.platform == "win32":
        return False
    names = os.fsencode(a), os.fsencode(b)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        function, arguments = "renamex_np", (*names, 2)
    else:
        at_cwd = -100
        function, arguments = "renameat2", (at_cwd, names[0], at_cwd, names[1], 2)
    return hasattr(libc, function) and getattr(libc, function)(*arguments) == 0


def _require_plain(lock: Path) -> None:
    """Raise OSError where no lock can be in this place: nothing is ever followed or waited for."""
    if lock.is_symlink():
        raise OSError(errno.ELOOP, "a link is in the place of a lock; remove it", str(lock))
    if lock.exists() and not lock.is_file():
        raise OSError(
            errno.EEXIST, "what is in the place of a lock is no file; remove it", str(lock)
        )


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    # Some file systems refuse to sync a folder; the rename is then as safe as they make it.
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
