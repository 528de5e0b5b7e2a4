"""Paths as people write them, and as code that is not Python takes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlc_rwkv_world.errors import UsageError

# What Linux and macOS take.
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_SHOWN = 60


def expanded(path: str | Path) -> Path:
    """`path` with a `~` or `~user` at its start put in full, as a shell puts what stands alone.

    Raises UsageError where there is no such user or no home, or where no file can have that name.
    """
    text = os.fspath(path)
    if (fault := fault_of_name(text)) is not None:
        shown = repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
        raise UsageError(f"{shown} is no path: {fault}.")
    try:
        # pathlib would forget that "./~" means a name.
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError:
        raise UsageError(
            f"{text}: the home folder that {text.split('/')[0]} stands for is not known. Give the "
            "path in full; ./~ begins one where ~ is a name."
        ) from None


def fault_of_name(text: str) -> str | None:
    """Why no file can have the path `text`, in a few words; None where one can."""
    if "\0" in text:
        return "it holds a NUL"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "it holds a character that no name of a file here can hold"
    if len(text) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        return f"it has {len(text)} characters, and a name in it at most {_LONGEST_NAME} bytes"
    return None


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A name of `path` that has a UTF-8 form, for libraries that take no other names of files.

    It is `path` itself where that has one, else a link to it that stands while the block runs.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link.so"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
