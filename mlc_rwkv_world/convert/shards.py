"""Writes tensors one after another into shards, and then the index that names them.

The format is the tensor cache that TVM's runtime and stock mlc_llm read. Records are aligned, so
that a runtime can use them where they lie in a mapped shard.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.artifact.json_fields import BUILD_ID
from mlc_rwkv_world.artifact.layout import NDARRAY_CACHE, SHARD_NAME, TENSOR_CACHE

# TVM's allocation alignment; a tensor that is not aligned has to be copied when loaded.
ALIGNMENT = 64
SHARD_CAP = 32 << 20
# Large tensors are written in pieces, which keeps the copy that hashing and writing need small.
_PIECE = 4 << 20


class ShardWriter:
    """Streams tensors into `folder`; nothing is complete before `finish` has written the index.

    A context manager, which closes the open shard where the work fails.

    A shard ends where the next tensor would take it past `SHARD_CAP` bytes; a tensor larger than
    that has a shard of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total_bytes = 0
        self._shards: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._size = 0
        self._file: Any = None
        self._digest = hashlib.md5(usedforsecurity=False)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Appends one tensor, C-contiguous, in its own dtype."""
        values = np.ascontiguousarray(values)
        if self._size and self._size + self._padding() + values.nbytes > SHARD_CAP:
            self._close_shard()
        if self._file is None:
            path = self.folder / SHARD_NAME.format(index=len(self._shards))
            self._file = path.open("wb")
        self._write(bytes(self._padding()))
        record = {
            "name": name,
            "shape": list(values.shape),
            "dtype": str(values.dtype),
            "format": "raw",
            "nbytes": values.nbytes,
            "byteOffset": self._size,
        }
        flat = values.reshape(-1).view(np.uint8).data
        for begin in range(0, values.nbytes, _PIECE):
            self._write(flat[begin : begin + _PIECE])
        self._records.append(record)
        self.total_bytes += values.nbytes

    def finish(self, values: int, build_id: str | None = None) -> None:
        """Closes the last shard and writes the index.

        `values` is the count of weights stored, `build_id` names the libraries that run them.
        """
        if self._records:
            self._close_shard()
        bits = 8 * self.total_bytes / max(values, 1)
        index = {
            "metadata": {
                "ParamSize": sum(len(shard["records"]) for shard in self._shards),
                "ParamBytes": float(self.total_bytes),
                "BitsPerParam": bits,
                **({} if build_id is None else {BUILD_ID: build_id}),
            },
            "records": self._shards,
        }
        text = json.dumps(index, indent=1)
        for name in (NDARRAY_CACHE, TENSOR_CACHE):
            (self.folder / name).write_text(text, encoding="utf-8")

    def _padding(self) -> int:
        return -self._size % ALIGNMENT

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def _close_shard(self) -> None:
        self._file.close()
        self._shards.append(
            {
                "dataPath": SHARD_NAME.format(index=len(self._shards)),
                "format": "raw-shard",
                "nbytes": self._size,
                "records": self._records,
                "md5sum": self._digest.hexdigest(),
            }
        )
        self._records, self._size, self._file = [], 0, None
        self._digest = hashlib.md5(usedforsecurity=False)
