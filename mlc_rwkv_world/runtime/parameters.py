"""Bring an artifact's parameters to the device.

Shards are mapped, not read. On a CPU a tensor is used where it lies in the file, if it lies
at an address that compiled code accepts; else, and on other devices, it is copied.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from mlc_rwkv_world.artifact.index import F32_TO_BF16, ParameterIndex
from mlc_rwkv_world.artifact.metadata import PackedParameter
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime import tvm_runtime
from mlc_rwkv_world.runtime.device import kind_of, release_unused
from mlc_rwkv_world.runtime.library import Library, check_parameters
from mlc_rwkv_world.runtime.tvm_runtime import ALIGNMENT


class MappedShards:
    """The shards of an index, each mapped at its first use.

    Mappings are private: nothing that is done to a tensor reaches the file.
    """

    def __init__(self, index: ParameterIndex) -> None:
        self.index = index
        self._maps: dict[str, mmap.mmap] = {}

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor `name` in its dtype; a view of the file unless it is stored as bfloat16."""
        record = self.index.tensors[name]
        data, shape = self._map(record.shard), record.shape
        if record.format == F32_TO_BF16:
            halves = np.frombuffer(data, np.uint16, record.nbytes // 2, record.offset)
            return (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        dtype = np.dtype(record.dtype)
        count = record.nbytes // dtype.itemsize
        return np.frombuffer(data, dtype, count, record.offset).reshape(shape)

    def forget(self, name: str) -> None:
        """Give back the memory that reading `name` took; reading it again is allowed."""
        record = self.index.tensors[name]
        start = -(-record.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (record.offset + record.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        # Windows has no such advice, and takes the memory back when it needs it.
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map(record.shard).madvise(mmap.MADV_DONTNEED, start, end - start)

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            with self.index.path(shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[shard]


def load_parameters(index: ParameterIndex, library: Library) -> Any:
    """The TVM array of tensors that our functions of `library` take.

    Raises ArtifactError where the shards are incomplete, or not those of this library.
    """
    index.check_files()
    check_parameters(library, index)
    # What a model before this one had would add to it.
    release_unused()
    shards = MappedShards(index)
    packed = library.metadata.packed
    if packed is None:
        names = [parameter.name for parameter in library.metadata.parameters]
        tensors = [to_device(shards.array(name), library.device) for name in names]
    else:
        tensors = [_pack(entry, shards, library) for entry in packed]
    return tvm_ffi.convert(tensors)


def _pack(entry: PackedParameter, shards: MappedShards, library: Library) -> Any:
    """One packed tensor; its sources' memory is given back at once."""
    sources = [to_device(shards.array(name), library.device) for name in entry.sources]
    if entry.pack:
        pack = library.function(entry.pack)
        try:
            tensor = pack(*sources)
        except Exception as error:
            raise library.failure(entry.pack, error) from error
        for name in entry.sources:
            shards.forget(name)
    else:
        tensor = sources[0]
    del sources
    if tuple(tensor.shape) != entry.shape or str(tensor.dtype) != entry.dtype:
        raise ArtifactError(
            f"{library.path}: {entry.pack or 'the parameter'} gave {tensor.dtype} "
            f"{list(tensor.shape)} for {entry.name!r} instead of {entry.dtype} "
            f"{list(entry.shape)}. Build the model again."
        )
    return tensor


def to_device(array: npt.NDArray[Any], device: Any) -> Any:
    """`array` as a tensor on `device`; on a CPU the same memory, if compiled code accepts it."""
    if kind_of(device) == "cpu" and array.ctypes.data % ALIGNMENT == 0:
        return tvm_runtime.shared(array)
    return tvm_runtime.tensor(array, device)
