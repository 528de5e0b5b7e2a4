"""What was typed in earlier conversations, for the arrow keys.

It lies in `history` of the user's own folder, which nobody else can read. The variable
MLC_RWKV_WORLD_HISTORY=off keeps nothing and reads nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_rwkv_world.artifact.atomic import write_file
from mlc_rwkv_world.artifact.registry import home

if TYPE_CHECKING:
    from prompt_toolkit.history import History

VARIABLE = "MLC_RWKV_WORLD_HISTORY"
_OFF = ("off", "0", "no", "false")
_NAME = "history"
_MAX_BYTES = 1 << 20
_LONGEST = 10_000  # characters; longer ones were pasted


def open_history() -> History:
    """The kept history, or one that is forgotten where it is off or has no place."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    place = home()
    if place is None or os.environ.get(VARIABLE, "").lower() in _OFF:
        return InMemoryHistory()
    path = place / _NAME
    try:
        place.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return InMemoryHistory()
        path.touch(mode=0o600)
        _shorten(path)
    except OSError:
        return InMemoryHistory()

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            # A full disk, or a text without a form in UTF-8, is no reason not to talk.
            if len(string) <= _LONGEST:
                with suppress(OSError, UnicodeEncodeError):
                    super().store_string(string)

    return Kept(str(path))


def _shorten(path: Path) -> None:
    """Drop the older half of a file that grew too long; entries are parted by blank lines."""
    if path.stat().st_size <= _MAX_BYTES:
        return
    data = path.read_bytes()
    rest = data[data.find(b"\n\n", len(data) // 2) :]
    write_file(path, rest)
    path.chmod(0o600)
