"""Paths as people write them, and as code that is not Python takes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlc_rwkv_world.errors import UsageError


def expanded(path: str | Path) -> Path:
    """`path` with a `~` or `~user` at its start put in full, as a shell puts what stands alone.

    Raises UsageError where there is no such user or no home, or where `path` holds a NUL.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError(f"{text!r} is no path: it holds a NUL.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{text}: the home folder that {text.split('/')[0]} stands for is not known. Give the "
            "path in full; ./~ begins one where ~ is a name."
        ) from None


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
