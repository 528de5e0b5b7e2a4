"""The safetensors layout: a JSON table of contents, then the tensors end to end.

The library of that name maps whole files into memory and knows bfloat16 only through
torch; the table is simple enough to read here, with every number checked.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.checkpoint.stored import (
    ITEM_SIZES,
    MAX_AXES,
    MAX_TABLE,
    Region,
    StoredTensor,
    row_major,
)
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors_file(path: Path) -> list[StoredTensor]:
    """Every tensor of the file, in the order of its data; no weight is read yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > MAX_TABLE:
                raise CheckpointError(
                    f"{path}: its header claims {header_size} bytes, expected at most "
                    f"{MAX_TABLE}: the file is damaged or is no checkpoint."
                )
            if 8 + header_size > size:
                raise _truncated(path, 8 + header_size, size)
            header = file.read(header_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    table = _parse(path, header)
    table.pop("__metadata__", None)
    begin = 8 + header_size
    tensors = [_locate(path, name, entry, begin) for name, entry in table.items()]
    tensors.sort(key=lambda tensor: tensor.region.offset)
    end = begin
    for tensor in tensors:
        if tensor.region.offset != end:
            raise _garbled(path, f"tensor {quoted(tensor.name)} does not begin where one ends")
        end += tensor.region.nbytes
    if end > size:
        raise _truncated(path, end, size)
    if end < size:
        raise _garbled(path, f"{size - end} bytes after the last tensor belong to none")
    return tensors


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise CheckpointError(
                    f"{path} holds {quoted(name)} twice; every tensor must be there once."
                )
            result[name] = value
        return result

    try:
        table = json.loads(header.decode("utf-8"), object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        raise _garbled(path, "it is not JSON") from None
    if not isinstance(table, dict):
        raise _garbled(path, "it is not a JSON object")
    return table


def _locate(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(low), int(high)]}:
            pass
        case _:
            raise _garbled(path, f"entry {quoted(name)} is not a tensor's")
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {quoted(name)} is of type {quoted(dtype)}; weights are F32, F16 or "
            "BF16. Give an unquantized checkpoint, the one that this was made from."
        )
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, low, high)):
        raise _garbled(path, f"the shape or place of {quoted(name)} are not plain numbers")
    if len(shape) > MAX_AXES:
        raise _garbled(path, f"tensor {quoted(name)} has {len(shape)} axes")
    kind = _DTYPES[dtype]
    nbytes = math.prod(shape) * ITEM_SIZES[kind]
    if high - low != nbytes:
        raise _garbled(
            path, f"tensor {quoted(name)} of shape {shape} needs {nbytes} bytes, not {high - low}"
        )
    region = Region(path, begin + low, nbytes)
    return StoredTensor(name, kind, tuple(shape), row_major(tuple(shape)), 0, region)


def _garbled(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: its safetensors header is garbled: {what}. {fetch_again(path)}"
    )


def _truncated(path: Path, expected: int, found: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated: {found} bytes found, {expected} expected. {fetch_again(path)}"
    )
