"""A tensor that still lies in its file, and how to read it from there."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.checkpoint.origin import fetch_again
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import CheckpointError

# The element types that weights come in, as little-endian raw words.
FLOAT_WORDS = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}

# Others are known only to be refused by name.
ITEM_SIZES = {name: np.dtype(word).itemsize for name, word in FLOAT_WORDS.items()} | {
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}

# A file's table of contents may be no larger, in bytes: an RWKV-4 7B needs under 0.2 MB, and
# a table takes some twenty times its size in memory when it is read.
MAX_TABLE = 4 << 20
MAX_AXES = 8

_PIECE = 1 << 20  # elements converted at a time


@dataclass(frozen=True)
class Region:
    """`nbytes` bytes at `offset` of a file; `crc32` where the file carries one."""

    path: Path
    offset: int
    nbytes: int
    crc32: int | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A view of `shape` into the elements of `region`, from element `start` on.

    `strides` count elements. Whoever makes one has checked that the view lies inside
    the region and has no more elements than it, so that reading needs no more memory
    than the file is large; but for `repeated` ones, which are vectors of a model.
    Where it is `exponential`, the file holds the logarithms of what is read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    region: Region
    exponential: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def transposed(self) -> StoredTensor:
        """The same elements with the axes in reverse order."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def part(self, number: int) -> StoredTensor:
        """One of those that lie along the first axis."""
        start = self.start + number * self.strides[0]
        return replace(self, shape=self.shape[1:], strides=self.strides[1:], start=start)

    def repeated(self, count: int) -> StoredTensor:
        """A matrix with `count` columns, each of which is this tensor."""
        axes = [axis for axis, n in enumerate(self.shape) if n != 1] or [0]
        (axis,) = axes
        shape, strides = (self.shape[axis], count), (self.strides[axis], 0)
        return replace(self, shape=shape, strides=strides)

    def read(self) -> npt.NDArray[np.float32]:
        """The tensor as a new C-contiguous float32 array of `shape`.

        The element type must be one of FLOAT_WORDS. Needs the memory of the result and a few
        megabytes. Raises CheckpointError if the bytes do not match the file's checksum, or if
        a value is not finite.
        """
        try:
            with self.region.path.open("rb") as file:
                if self.strides == row_major(self.shape):
                    tensor = self._read_run(file, self.start, self.size).reshape(self.shape)
                else:
                    tensor = self._read_view(file)
        except OSError as error:
            raise CheckpointError(f"{self.region.path} cannot be read: {error.strerror}") from error

        if self.exponential:
            with np.errstate(over="ignore"):
                np.exp(tensor, out=tensor)
        self._require_finite(tensor.ravel())
        return tensor

    def _read_view(self, file: BufferedReader) -> npt.NDArray[np.float32]:
        """A transposed or otherwise scattered view: its whole span is read, then picked from."""
        if self.size == 0:
            return np.empty(self.shape, np.float32)
        extent = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        span = self._read_run(file, self.start, extent + 1)
        byte_strides = [step * span.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(span, self.shape, byte_strides, writeable=False)
        return np.ascontiguousarray(view)

    def _read_run(self, file: BufferedReader, start: int, count: int) -> npt.NDArray[np.float32]:
        """`count` elements from element `start` of the region, converted piece by piece."""
        word = np.dtype(FLOAT_WORDS[self.dtype])
        result = np.empty(count, np.float32)
        crc = 0
        file.seek(self.region.offset + start * word.itemsize)
        for low in range(0, count, _PIECE):
            piece = result[low : low + _PIECE]
            raw = np.empty(piece.size, word)
            raw_bytes = raw.data.cast("B")
            if file.readinto(raw_bytes) != raw.nbytes:
                raise CheckpointError(
                    f"{self.region.path} ends inside tensor {quoted(self.name)}; the file became "
                    "shorter while it was being read."
                )
            crc = zlib.crc32(raw_bytes, crc)
            _widen(self.dtype, raw, piece)
        whole = count * word.itemsize == self.region.nbytes
        if whole and self.region.crc32 is not None and crc != self.region.crc32:
            raise CheckpointError(
                f"{self.region.path}: the bytes of tensor {quoted(self.name)} have checksum "
                f"{crc:08x}, the file says {self.region.crc32:08x}: the file is damaged. "
                f"{fetch_again(self.region.path)}"
            )
        return result

    def _require_finite(self, values: npt.NDArray[np.float32]) -> None:
        for low in range(0, values.size, _PIECE):
            finite = np.isfinite(values[low : low + _PIECE])
            if not finite.all():
                place = low + int(np.argmin(finite))
                raise CheckpointError(
                    f"{self.region.path}: tensor {quoted(self.name)} holds {values[place]} at "
                    f"element {place}; every weight must be a finite number. The file is damaged "
                    "or its training diverged: use another copy."
                )


def _widen(dtype: str, raw: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
    """Writes the words `raw` of element type `dtype` to `out` as float32."""
    if dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = raw


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a C-contiguous array of `shape`."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
