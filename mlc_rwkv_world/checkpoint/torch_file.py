"""torch's zip layout (`.pth`, `.bin`), read without torch."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

from mlc_rwkv_world.checkpoint.file_kind import resave_command
from mlc_rwkv_world.checkpoint.pickled_tensors import PickledTensor, read_pickled_tensors
from mlc_rwkv_world.checkpoint.stored import ITEM_SIZES, MAX_TABLE, Region, StoredTensor
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.checkpoint.zip_directory import ZipEntry, read_directory
from mlc_rwkv_world.errors import CheckpointError

_NESTED = ("state_dict", "model_state_dict", "model", "module", "weights")


def read_torch_file(path: Path) -> list[StoredTensor]:
    """Every tensor of a file that torch.save wrote, in its order; no weight is read yet."""
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

    content = read_pickled_tensors(pickled, str(path))
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors: save "
            "the model's state_dict()."
        )
    tensors = []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise _not_a_tensor(path, name, value)
        tensors.append(_locate(path, entries, prefix, name, value))
    return tensors


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
            "damaged. Download or copy it again."
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
            "missing: the file is damaged. Download or copy it again."
        )
    _require_uncompressed(path, entry)
    expected = storage.size * ITEM_SIZES[storage.dtype]
    if entry.size != expected:
        raise CheckpointError(
            f"{path}: the data of tensor {quoted(name)} has {entry.size} bytes, expected "
            f"{expected}: the file is damaged. Download or copy it again."
        )
    # torch writes 0 where it was told not to compute checksums.
    region = Region(path, entry.offset, entry.size, entry.crc32 or None)
    return StoredTensor(name, storage.dtype, tensor.shape, tensor.strides, tensor.offset, region)


def _not_a_tensor(path: Path, name: object, value: object) -> CheckpointError:
    if name in _NESTED and isinstance(value, dict):
        return CheckpointError(
            f"{path} is a training checkpoint with its weights under {quoted(name)}. Save these "
            "alone: " + resave_command(path, f'["{name}"]')
        )
    if name == "_strategy":
        return CheckpointError(
            f"{path} was converted by ChatRWKV for one strategy; give the checkpoint that it "
            "was converted from."
        )
    return CheckpointError(
        f"{path}: entry {quoted(name)} is a {type(value).__name__}, expected a tensor: save the "
        "model's state_dict() alone."
    )
