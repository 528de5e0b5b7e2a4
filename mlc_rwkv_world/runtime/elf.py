"""A look at the head of a Linux library before the system's loader maps it.

The loader believes the head: where the file was cut short, it dies of a bus error instead
of reporting one.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from mlc_rwkv_world.artifact.links import require_file
from mlc_rwkv_world.errors import ArtifactError

_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LITTLE_ENDIAN_64 = b"\x02\x01"
_MACHINES = {62: "x86_64", 183: "aarch64"}
_SAME_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}


def check_library(path: Path) -> None:
    """Raise ArtifactError where `path` is no file, or an ELF file cut short or of another machine.

    So it does for what a failed download leaves; other kinds of files are left to the loader.
    """
    require_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if not head.startswith(_MAGIC):
            _check_download(path, head)
            return
        if len(head) < _HEADER.size or head[4:6] != _LITTLE_ENDIAN_64:
            raise ArtifactError(f"{path} is no library for this machine. Build the model again.")
        fields = _HEADER.unpack(head)
        machine, (segments, sections), (width, count) = fields[1], fields[4:6], fields[8:10]
        end = sections + fields[10] * fields[11]
        table = b""
        if segments + width * count <= size:
            file.seek(segments)
            table = file.read(width * count)
    if width == _SEGMENT.size and len(table) == width * count:
        for _, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(table):
            end = max(end, offset + length)
    else:
        end = max(end, segments + width * count)
    if end > size:
        raise ArtifactError(
            f"{path} is cut short: it has {size} bytes of {end}. Build or copy it again."
        )
    here = platform.machine().lower()
    here = _SAME_MACHINE.get(here, here)
    if _MACHINES.get(machine, here) != here:
        raise ArtifactError(
            f"{path} was built for {_MACHINES[machine]}, and this machine is {here}. "
            "Build the model for it."
        )


def _check_download(path: Path, head: bytes) -> None:
    """Names what the loader would call a file that is too short or has a bad head."""
    if not head:
        what = "is empty (0 bytes)"
    elif head.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the library it points to"
    elif head.lstrip().startswith(b"<"):
        what = "is a web page (HTML), not a library"
    else:
        return
    raise ArtifactError(f"{path} {what}. Build the model again, or copy the library itself.")
