"""The table of contents of a zip archive, read with bounds.

torch stores tensors uncompressed in a zip archive, so knowing where each entry's bytes
lie is all that reading needs. Python's zipfile loads a directory of whatever size the
file claims and keeps the data's place to itself; this one does neither.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.checkpoint.stored import MAX_TABLE
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_MAX_COMMENT = 0xFFFF


@dataclass(frozen=True)
class ZipEntry:
    """One file of the archive: `size` bytes at `offset`, as they are unless `compressed`."""

    name: str
    offset: int
    size: int
    crc32: int
    compressed: bool


def read_directory(file: BinaryIO, path: Path) -> dict[str, ZipEntry]:
    """Every entry of the archive by name; `file` is open for reading, `path` is for messages.

    Raises CheckpointError where the archive is truncated, damaged or encrypted, or holds a
    name twice.
    """
    size = file.seek(0, 2)
    count, directory_size, directory_offset = _find_directory(file, path, size)
    if directory_size > MAX_TABLE:
        raise CheckpointError(
            f"{path}: its zip directory claims {directory_size} bytes, expected at most "
            f"{MAX_TABLE}: the file is damaged or is no checkpoint."
        )
    if directory_offset + directory_size > size:
        raise _damaged(path, "its zip directory lies beyond the end of the file")
    file.seek(directory_offset)
    directory = file.read(directory_size)

    entries: dict[str, ZipEntry] = {}
    place = 0
    for _ in range(count):
        entry, place = _read_entry(file, path, directory, place, directory_offset)
        if entry.name in entries:
            raise _damaged(path, f"it holds the entry {quoted(entry.name)} twice")
        entries[entry.name] = entry
    if place != directory_size:
        raise _damaged(path, "its zip directory has bytes after the last entry")
    return entries


def _find_directory(file: BinaryIO, path: Path, size: int) -> tuple[int, int, int]:
    """Number of entries, size in bytes and offset of the central directory."""
    tail_size = min(size, _END.size + _MAX_COMMENT)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        raise CheckpointError(
            f"{path} is truncated: it begins as a torch file, but the directory that stands at "
            f"the end is missing ({size} bytes found). {fetch_again(path)}"
        )
    _, disk, _, _, count, length, offset, comment = _END.unpack_from(tail, place)
    if disk not in (0, 0xFFFF) or place + _END.size + comment != len(tail):
        raise _damaged(path, "the end record of its zip directory contradicts itself")
    if 0xFFFF not in (disk, count) and 0xFFFFFFFF not in (length, offset):
        return count, length, offset

    end = size - tail_size + place
    locator_offset = end - _END64_LOCATOR.size
    if locator_offset < 0:
        raise _damaged(path, "its zip64 locator is missing")
    file.seek(locator_offset)
    magic, _, end64, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
    if magic != b"PK\x06\x07" or end64 + _END64.size > locator_offset:
        raise _damaged(path, "its zip64 locator is missing")
    file.seek(end64)
    magic, *_, count, length, offset = _END64.unpack(file.read(_END64.size))
    if magic != b"PK\x06\x06":
        raise _damaged(path, "its zip64 end record is missing")
    return count, length, offset


def _read_entry(
    file: BinaryIO, path: Path, directory: bytes, place: int, limit: int
) -> tuple[ZipEntry, int]:
    """The entry at `place` of the directory, and the place of the next; data end before `limit`."""
    if place + _CENTRAL.size > len(directory):
        raise _damaged(path, "its zip directory ends inside an entry")
    header = _CENTRAL.unpack_from(directory, place)
    magic, flags, method, crc32 = header[0], header[3], header[4], header[7]
    packed, size, name_size, extra_size, comment_size = header[8:13]
    offset = header[16]
    after = place + _CENTRAL.size + name_size + extra_size + comment_size
    if magic != b"PK\x01\x02" or after > len(directory):
        raise _damaged(path, "its zip directory is garbled")
    place += _CENTRAL.size
    raw_name = directory[place : place + name_size]
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(path, f"an entry has the name {raw_name[:40]!r}") from None
    extra = directory[place + name_size : place + name_size + extra_size]
    size, packed, offset = _apply_zip64(path, extra, size, packed, offset)

    if flags & 1:
        raise CheckpointError(f"{path}: entry {quoted(name)} is encrypted; torch files never are.")
    if method == 0 and packed != size:
        raise _damaged(path, f"entry {quoted(name)} has two sizes, {packed} and {size}")

    if offset + _LOCAL.size > limit:
        raise _damaged(path, f"entry {quoted(name)} lies beyond its end")
    file.seek(offset)
    local = _LOCAL.unpack(file.read(_LOCAL.size))
    local_name = file.read(local[9])
    if local[0] != b"PK\x03\x04" or local_name != raw_name:
        raise _damaged(path, f"the header of entry {quoted(name)} is not where it should be")
    data = offset + _LOCAL.size + local[9] + local[10]
    if data + packed > limit:
        raise _damaged(path, f"entry {quoted(name)} claims {packed} bytes, more than there are")
    return ZipEntry(name, data, size, crc32, compressed=method != 0), after


def _apply_zip64(
    path: Path, extra: bytes, size: int, packed: int, offset: int
) -> tuple[int, int, int]:
    """Replaces the fields that say "too large for 32 bits" by those of the zip64 extra field."""
    values = [size, packed, offset]
    wanted = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    place = 0
    while wanted and place + 4 <= len(extra):
        field, length = struct.unpack_from("<2H", extra, place)
        place += 4
        if field == 1:
            if length < 8 * len(wanted) or place + length > len(extra):
                break
            for i in wanted:
                (values[i],) = struct.unpack_from("<Q", extra, place)
                place += 8
            return values[0], values[1], values[2]
        place += length
    if wanted:
        raise _damaged(path, "an entry of its zip directory lacks its zip64 field")
    return size, packed, offset


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {what}. {fetch_again(path)}")
