"""torch's zip layout (`.pth`, `.bin`), read without torch."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.checkpoint.pickled_tensors import PickledTensor, read_pickled_tensors
from mlc_rwkv_world.checkpoint.stored import ITEM_SIZES, MAX_TABLE, Region, StoredTensor
from mlc_rwkv_world.checkpoint.training_file import weights_of
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.checkpoint.zip_directory import ZipEntry, read_directory
from mlc_rwkv_world.errors import CheckpointError


def read_torch_file(path: Path) -> list[StoredTensor]:
    """Every tensor of the model in a file that torch.save wrote, in its order.

    No weight is read yet. A training file may hold more than a model: the rest is left alone.
    """
    try:
        with path.open("rb") as file:
            entries = read_directory(file, path)
            prefix = _find_prefix(path, entries)
            byte_order = entries.get(f"{prefix}/byteorder")
            if byte_order and _read_entry(file, path, byte_order) != b"little":
                raise CheckpointError(
                    f"{path} was saved on a big-endian machine; save it again on a usual one."
                )
            pickled = _read_entry(file, path, entries[f"{prefix}/data.pkl"])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    weights = weights_of(path, read_pickled_tensors(pickled, str(path)))
    return [_locate(path, entries, prefix, name, tensor) for name, tensor in weights.items()]


def _find_prefix(path: Path, entries: dict[str, ZipEntry]) -> str:
    """The folder inside the archive, which torch names after the file that it wrote."""
    prefixes = [match[1] for name in entries if (match := re.fullmatch(r"([^/]+)/data\.pkl", name))]
    if len(prefixes) != 1:
        raise CheckpointError(
            f"{path} is a zip archive, but not one that torch.save wrote: it holds "
            f"{listed(entries) or 'nothing'}. If the checkpoint is inside it, unpack it first."
        )
    prefix = prefixes[0]
    if any(name.startswith((f"{prefix}/constants.pkl", f"{prefix}/code/")) for name in entries):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program with its weights; expected weights "
            "alone: save the model's state_dict()."
        )
    return prefix


def _read_entry(file: BinaryIO, path: Path, entry: ZipEntry) -> bytes:
    """The bytes of a small entry, checked against its checksum."""
    if entry.size > MAX_TABLE:
        raise CheckpointError(
            f"{path}: entry {quoted(entry.name)} has {entry.size} bytes, expected at most "
            f"{MAX_TABLE}: the file is damaged or is no checkpoint."
        )
    _require_uncompressed(path, entry)
    file.seek(entry.offset)
    data = file.read(entry.size)
    if entry.crc32 and zlib.crc32(data) != entry.crc32:
        raise CheckpointError(
            f"{path}: entry {quoted(entry.name)} does not match its checksum: the file is "
            f"damaged. {fetch_again(path)}"
        )
    return data


def _require_uncompressed(path: Path, entry: ZipEntry) -> None:
    if entry.compressed:
        raise CheckpointError(
            f"{path}: entry {quoted(entry.name)} is compressed; torch stores tensors as they "
            "are. The archive was packed again by another tool: save it with torch.save."
        )


def _locate(
    path: Path, entries: dict[str, ZipEntry], prefix: str, name: str, tensor: PickledTensor
) -> StoredTensor:
    storage = tensor.storage
    entry = entries.get(f"{prefix}/data/{storage.key}")
    if entry is None:
        raise CheckpointError(
            f"{path}: the data of tensor {quoted(name)} (entry data/{quoted(storage.key)}) is "
            f"missing: the file is damaged. {fetch_again(path)}"
        )
    _require_uncompressed(path, entry)
    expected = storage.size * ITEM_SIZES[storage.dtype]
    if entry.size != expected:
        raise CheckpointError(
            f"{path}: the data of tensor {quoted(name)} has {entry.size} bytes, expected "
            f"{expected}: the file is damaged. {fetch_again(path)}"
        )
    # torch writes 0 where it was told not to compute checksums.
    region = Region(path, entry.offset, entry.size, entry.crc32 or None)
    return StoredTensor(name, storage.dtype, tensor.shape, tensor.strides, tensor.offset, region)
