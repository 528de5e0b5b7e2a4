"""Which library and which weights belong together.

Both carry a table of the parameters. What builds of ours write carries a build id as well: a
digest of the table and of everything else that decides what the stored numbers mean. A library
runs any weights of its own id, whichever checkpoint they come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.metadata import LibraryMetadata
from mlc_rwkv_world.errors import ArtifactError

Row = tuple[str, Sequence[int], str]


def table_digest(rows: Iterable[Row]) -> str:
    """SHA-256 of a table of (name, shape, dtype), whatever the order of its rows."""
    table = sorted([name, list(shape), dtype] for name, shape, dtype in rows)
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()


def make_build_id(rows: Iterable[Row], meaning: Mapping[str, Any]) -> str:
    """The id of everything with this table whose numbers have this `meaning` (JSON values)."""
    text = json.dumps([table_digest(rows), dict(meaning)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Belonging:
    """Whether a library takes the parameters of an index: `fault` says why not.

    `certain` is True where both carry the same build id. Without it, as in what stock mlc_llm
    writes, equal tables are all that is known.
    """

    fault: str | None
    certain: bool

    def __str__(self) -> str:
        if self.fault is not None:
            return f"library and weights do not belong together: {self.fault}"
        if self.certain:
            return "library and weights have the same build id"
        return "library and weights have the same parameters; without a build id no more is known"


def belonging(metadata: LibraryMetadata, index: ParameterIndex) -> Belonging:
    """Compare the tables, then the build ids where both carry one. Reads no weights."""
    ours = [(p.name, p.shape, p.dtype) for p in metadata.parameters]
    theirs = [(t.name, t.shape, t.dtype) for t in index.tensors.values()]
    if table_digest(ours) != table_digest(theirs):
        return Belonging(_difference(metadata, index), certain=False)
    ids = metadata.build_id, index.build_id
    if None in ids:
        return Belonging(None, certain=False)
    if ids[0] != ids[1]:
        return Belonging(f"the library has build id {ids[0]}, the weights {ids[1]}", certain=False)
    return Belonging(None, certain=True)


def _difference(metadata: LibraryMetadata, index: ParameterIndex) -> str:
    for parameter in metadata.parameters:
        record = index.tensors.get(parameter.name)
        found = f"{record.dtype} {list(record.shape)}" if record is not None else "missing"
        expected = f"{parameter.dtype} {list(parameter.shape)}"
        if found != expected:
            return f"{parameter.name!r} is {found} there, and the library takes {expected}"
    names = {parameter.name for parameter in metadata.parameters}
    unknown = [name for name in index.tensors if name not in names]
    return f"it does not take {unknown[0]!r}" if unknown else "it takes a parameter twice"


def describe_weights(params: Path) -> str:
    """One line on the weights in the folder `params`, for a report; nothing is raised."""
    try:
        build_id = ParameterIndex.read(params).build_id
    except ArtifactError as error:
        return str(error)
    if build_id is None:
        return f"{params}: no build id; that it fits its library is told by the parameters alone"
    return f"{params}: build id {build_id}"


def describe_library(path: Path, params: Path, tvm: str | None = None) -> str:
    """One line on the library `path` of the weights in `params`, for a report.

    With `tvm`, the version that is here, it says whether the library was built by another. Nothing
    is loaded and nothing raised.
    """
    try:
        metadata = read_embedded(path)
        if metadata is None:
            return f"{path}: what it says of itself cannot be read without loading it"
        fault = belonging(metadata, ParameterIndex.read(params)).fault
    except (ArtifactError, OSError) as error:
        return str(error)
    built_by = f"built by TVM {metadata.tvm}" if metadata.tvm else "does not say which TVM built it"
    if tvm is not None and metadata.tvm not in (None, tvm):
        built_by += f", and {tvm} is here; where it does not load, build the model again"
    if not metadata.stock:
        built_by += ", without stock mlc_llm's functions"
    return f"{path}: {built_by}" + ("" if fault is None else f"; not for these weights: {fault}")
