"""Files that a person names to be written: nothing but an older one of the same kind is replaced.

The place is looked at before the work whose result goes there, and once more when it does.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlc_rwkv_world.artifact.atomic import write_file
from mlc_rwkv_world.artifact.storage import storing
from mlc_rwkv_world.errors import UsageError

_HEAD = 1 << 16


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a message calls it, and how each that was written before begins."""

    name: str
    begins: re.Pattern[bytes]


@dataclass(frozen=True)
class Output:
    """A file of some kind that is to be written."""

    path: Path
    kind: Kind

    def check(self) -> None:
        """Raise UsageError where something else is in the place, a link too.

        And StorageError where its folder is missing or cannot be written.
        """
        path = self.path
        if "\0" in str(path):
            raise UsageError(f"{str(path)!r} is no name of a file.")
        with storing(path):
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise UsageError(f"{path} is no file but a link, a pipe or a device. {_OTHER}")
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path.exists() and not self._is_ours():
                raise UsageError(
                    f"{path} is there already, and is no {self.kind.name}: it was left as it is. "
                    f"{_OTHER}"
                )
            _require_writable(path.parent)

    def write(self, data: bytes) -> None:
        """Write the file, whole or not at all. Raises what `check` does."""
        self.check()
        with storing(self.path):
            write_file(self.path, data)

    def _is_ours(self) -> bool:
        with self.path.open("rb") as file:
            head = file.read(_HEAD)
        # An empty file, as mktemp makes it, holds nothing that could be lost.
        return not head or self.kind.begins.match(head) is not None


_OTHER = "Give another name, or move it away."


def _require_writable(folder: Path) -> None:
    code = 0
    if not folder.is_dir():
        code = errno.ENOTDIR if folder.exists() else errno.ENOENT
    elif not os.access(folder, os.W_OK | os.X_OK):
        # Windows tells no more.
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
    if code:
        raise OSError(code, os.strerror(code))
