"""`SHA256SUMS`: the checksum of every file that a build wrote, as `sha256sum -c` reads it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mlc_rwkv_world.artifact.layout import PARAMS_DIR, SHA256SUMS
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.errors import ArtifactError

_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\0\r\n]+)")
_MAX_BYTES = 1 << 20


def write_checksums(folder: Path, name: str, known: Mapping[str, str]) -> None:
    """Write the checksums of the artifact `name`, which fills `folder`.

    Those that are `known` are taken over, so that damage to a file that an earlier build wrote
    is still found. Files that are not the artifact's are left out.
    """
    lines = []
    for path in _files(folder, name):
        relative = path.relative_to(folder).as_posix()
        if _LINE.fullmatch(f"{'0' * 64}  {relative}"):
            lines.append(f"{known.get(relative) or sha256(path)}  {relative}\n")
    (folder / SHA256SUMS).write_text("".join(lines), encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str] | None:
    """The checksums by relative path; None where there is no such file.

    Raises ArtifactError where it is damaged, or names a file outside the folder.
    """
    path = folder / SHA256SUMS
    require_inside(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise _damaged(path, "it is not text") from None
    if len(data) > _MAX_BYTES:
        raise _damaged(path, f"it is larger than {_MAX_BYTES} bytes")
    sums: dict[str, str] = {}
    lines = text.split("\n")
    if not text or lines.pop():
        raise _damaged(path, "it ends inside a line")
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or not _stays_inside(match[2]) or match[2] in sums:
            raise _damaged(path, f"line {number} is not the checksum of another file of it")
        sums[match[2]] = match[1]
    return sums


def sha256(path: Path) -> str:
    """The checksum of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path, name: str) -> Iterator[Path]:
    yield from sorted(p for p in (folder / PARAMS_DIR).glob("*") if p.is_file())
    yield from sorted(p for p in folder.iterdir() if p.name.startswith(f"{name}-") and p.is_file())


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: {what}. Build or copy the artifact again.")
