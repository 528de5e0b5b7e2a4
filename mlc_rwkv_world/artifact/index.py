"""The index of an artifact's parameters, and the identity that it gives the model.

Two programs write this file, ours and stock mlc_llm; both are read. Nothing in it is
trusted: types, sizes and places are checked before a byte of a shard is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import NDARRAY_CACHE, TENSOR_CACHE
from mlc_rwkv_world.artifact.links import require_inside
from mlc_rwkv_world.errors import ArtifactError

ITEM_SIZES = {
    "float32": 4,
    "float16": 2,
    "uint32": 4,
    "int32": 4,
    "uint16": 2,
    "int16": 2,
    "uint8": 1,
    "int8": 1,
}
RAW = "raw"
# Stock mlc_llm stores float32 tensors as the upper halves of their words.
F32_TO_BF16 = "f32-to-bf16"


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: what it is, and where its bytes lie in which shard."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    nbytes: int
    offset: int
    shard: str


@dataclass(frozen=True)
class ShardRecord:
    """One shard file: its name in the `params` folder, size, checksum and tensors in order."""

    file: str
    nbytes: int
    md5: str
    tensors: tuple[TensorRecord, ...]


@dataclass(frozen=True)
class ParameterIndex:
    """Everything that `tensor-cache.json` says, checked."""

    folder: Path
    shards: tuple[ShardRecord, ...]
    build_id: str | None = None

    @classmethod
    def read(cls, folder: Path) -> ParameterIndex:
        """The index of the `params` folder `folder`.

        Raises ArtifactError where it is missing or damaged, names a tensor twice, or places
        one outside its shard or a shard outside the folder. `check_files` looks at the shards.
        """
        path = next((p for name in _INDEX_NAMES if (p := folder / name).is_file()), None)
        if path is None:
            raise ArtifactError(
                f"{folder} has no {TENSOR_CACHE}, so it is no complete artifact. "
                "Build the model again."
            )
        require_inside(path)
        fields = Fields.read(path)
        shards = tuple(_shard(entry) for entry in fields.objects("records"))
        _check_unique(path, "shard", [shard.file for shard in shards])
        _check_unique(path, "tensor", [t.name for shard in shards for t in shard.tensors])
        if not shards:
            raise ArtifactError(f"{path} lists no shards. Build the model again.")
        return cls(folder, shards, fields.object("metadata", {}).build_id())

    @cached_property
    def tensors(self) -> dict[str, TensorRecord]:
        """The records by name, in the order of the file."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @cached_property
    def identity(self) -> str:
        """SHA-256 over each tensor's name, shape, dtype and place and its shard's checksum.

        Two artifacts share it when their parameters are the same bytes in the same places;
        a state file carries it to say which model it belongs to.
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            for t in shard.tensors:
                row = [t.name, list(t.shape), t.dtype, t.format, t.offset, shard.md5]
                digest.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    def path(self, shard: str) -> Path:
        """Where the shard file named `shard` lies."""
        return self.folder / shard

    def check_files(self) -> None:
        """Cheap look at the shards: each is a file of this folder and has its size.

        Raises ArtifactError for the first that is missing, a link that leaves the folder, or
        of another size. Contents are not read; `damaged_shards` does that.
        """
        for shard in self.shards:
            path = self.path(shard.file)
            require_inside(path)
            if not path.is_file():
                raise ArtifactError(f"{path} is missing. Build or copy the artifact again.")
            if (size := path.stat().st_size) != shard.nbytes:
                raise ArtifactError(
                    f"{path} has {size} bytes where the index says {shard.nbytes}. "
                    "Build or copy the artifact again."
                )

    def damaged_shards(self) -> Iterator[Path]:
        """Read every shard and give those whose MD5 is not the one in the index."""
        for shard in self.shards:
            digest = hashlib.md5(usedforsecurity=False)
            with self.path(shard.file).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != shard.md5:
                yield self.path(shard.file)


_INDEX_NAMES = (TENSOR_CACHE, NDARRAY_CACHE)
_MD5 = re.compile(r"[0-9a-f]{32}")


def _shard(fields: Fields) -> ShardRecord:
    file = fields.text("dataPath")
    # A shard is a plain name: no folder, no drive, nothing hidden, no control character, and no
    # longer than a file system takes.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", file):
        raise fields.error("dataPath", "the plain name of a file in the same folder")
    if fields.text("format", "raw-shard") != "raw-shard":
        raise fields.error("format", '"raw-shard"')
    md5 = fields.text("md5sum")
    if not _MD5.fullmatch(md5):
        raise fields.error("md5sum", "32 hexadecimal digits")
    nbytes = fields.integer("nbytes", minimum=1)
    tensors = tuple(_tensor(record, file, nbytes) for record in fields.objects("records"))
    return ShardRecord(file, nbytes, md5, tensors)


def _tensor(fields: Fields, shard: str, shard_nbytes: int) -> TensorRecord:
    name, shape, dtype = fields.text("name"), fields.shape(), fields.text("dtype")
    if dtype not in ITEM_SIZES:
        raise fields.error("dtype", "one of " + ", ".join(ITEM_SIZES))
    format_ = fields.text("format", RAW)
    if format_ not in (RAW, F32_TO_BF16):
        raise fields.error("format", f'"{RAW}" or "{F32_TO_BF16}"')
    # Stock mlc_llm marks every tensor "f32-to-bf16"; it means something for float32 alone.
    halved = format_ == F32_TO_BF16 and dtype == "float32"
    expected = math.prod(shape) * (2 if halved else ITEM_SIZES[dtype])
    nbytes, offset = fields.integer("nbytes"), fields.integer("byteOffset")
    if nbytes != expected:
        raise fields.error("nbytes", f"{expected}, the size of {dtype} {list(shape)}")
    if offset + nbytes > shard_nbytes:
        raise fields.error("byteOffset", f"at most {shard_nbytes - nbytes}, to end in {shard}")
    return TensorRecord(name, shape, dtype, F32_TO_BF16 if halved else RAW, nbytes, offset, shard)


def _check_unique(path: Path, kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtifactError(f"{path} lists the {kind} {name!r} twice. Build the model again.")
        seen.add(name)
