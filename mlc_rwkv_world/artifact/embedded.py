"""What a library says of itself, read from its file: nothing in it is loaded or run.

Compilers store the text that `_metadata()` returns as it is, in one piece. A library where it is
not found may still be sound; loading it tells more.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

from mlc_rwkv_world.artifact.layout import MODEL_TYPE
from mlc_rwkv_world.artifact.metadata import LibraryMetadata
from mlc_rwkv_world.errors import ArtifactError

_START = f'{{"model_type": "{MODEL_TYPE}"'.encode()
# The metadata of the largest RWKV-4 model take a tenth of it.
_MOST_BYTES = 4 << 20
# Texts that start like metadata; a file with more was made to take time.
_MOST_PLACES = 4


def read_embedded(path: Path) -> LibraryMetadata | None:
    """The metadata in the library file `path`; None where none can be read.

    Raises OSError where the file cannot be opened.
    """
    if path.exists() and not path.is_file():
        # A pipe or a device would block or never end.
        return None
    for text in _candidates(path):
        try:
            _, end = json.JSONDecoder().raw_decode(text)
            return LibraryMetadata.parse(text[:end], str(path))
        except (ValueError, RecursionError, ArtifactError):
            continue
    return None


def _candidates(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = -1
            for _ in range(_MOST_PLACES):
                place = data.find(_START, place + 1)
                if place < 0:
                    return
                yield data[place : place + _MOST_BYTES].decode("utf-8", errors="replace")
