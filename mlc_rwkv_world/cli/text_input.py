"""Text that an option names: a file, or standard input."""

from __future__ import annotations

import sys

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.errors import NotFoundError, UsageError


def read_text(name: str) -> str:
    """The UTF-8 text in the file `name`, or of standard input where that is `-`.

    Raises NotFoundError where there is none, UsageError where it is empty or not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else expanded(name).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{name}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}. Give a text file.") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 (byte {data[error.start]:#04x} at {error.start}). Convert it."
        ) from None
    if not text:
        raise UsageError(f"{name} is empty; there is nothing to read.")
    return text
