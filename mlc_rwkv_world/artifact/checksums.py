"""`SHA256SUMS`: the list of the files that make an artifact, each with its checksum.

`sha256sum -c` reads it as well. What it does not name is no part of the artifact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mlc_rwkv_world.artifact.layout import LIBRARY_ENDINGS, PARAMS_DIR, SHA256SUMS
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.artifact.places import fault_of_name
from mlc_rwkv_world.errors import ArtifactError

_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\0\r\n]+)")
_MAX_BYTES = 1 << 20


def write_checksums(folder: Path, libraries: Iterable[str], known: Mapping[str, str]) -> None:
    """Write the list of the artifact in `folder`: its parameters, `libraries`, and what is `known`.

    Checksums that are `known` are taken over, so that damage to a file that an earlier build wrote
    is still found. Other files are not the artifact's and left out, a library in `params` too.
    """
    params = sorted(p for p in (folder / PARAMS_DIR).glob("*") if p.is_file())
    names = [f"{PARAMS_DIR}/{p.name}" for p in params if p.suffix not in LIBRARY_ENDINGS]
    kept = (name for name in known if "/" not in name and (folder / name).is_file())
    names += sorted({*libraries, *kept})
    lines = [
        f"{known.get(name) or sha256(folder / name)}  {name}\n"
        for name in names
        if _LINE.fullmatch(f"{'0' * 64}  {name}")
    ]
    (folder / SHA256SUMS).write_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def read_checksums(folder: Path) -> dict[str, str] | None:
    """The checksums by relative path; None where there is no such file.

    Raises ArtifactError where it is damaged, or names a file outside the folder.
    """
    path = folder / SHA256SUMS
    require_inside(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise _damaged(path, f"it is larger than {_MAX_BYTES} bytes")
    # Names are bytes, which need not be UTF-8; their checksums are text.
    text = data.decode("utf-8", "surrogateescape")
    if not _LINE.match(text) and text != data.decode("utf-8", "replace"):
        raise _damaged(path, "it is not text")
    sums: dict[str, str] = {}
    lines = text.split("\n")
    if not text or lines.pop():
        raise _damaged(path, "it ends inside a line")
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or not _is_inside(match[2]) or match[2] in sums:
            raise _damaged(path, f"line {number} is not the checksum of another file of it")
        sums[match[2]] = match[1]
    return sums


def list_digest(folder: Path) -> str | None:
    """What tells one list from every other: its own checksum; None where there is no list."""
    path = folder / SHA256SUMS
    try:
        require_inside(path)
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MAX_BYTES + 1)).hexdigest()
    except (ArtifactError, OSError):
        return None


def fault_of(path: Path, expected: str) -> str | None:
    """What is wrong with a listed file, in a few words; None where it has its checksum."""
    try:
        require_inside(path)
        actual = sha256(path)
    except ArtifactError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if actual == expected else "was changed since it was built"


def sha256(path: Path) -> str:
    """The checksum of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and ".." not in parts and parts[0][0] != "/"
    return inside and fault_of_name(name) is None


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: {what}. Build or copy the artifact again.")
