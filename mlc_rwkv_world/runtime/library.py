"""Open a compiled library with TVM's runtime, and check that it fits where it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact import abi
from mlc_rwkv_world.artifact.checksums import fault_of
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.identity import belonging
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.metadata import REVISION, LibraryMetadata
from mlc_rwkv_world.errors import (
    ArtifactError,
    RwkvWorldError,
    is_out_of_memory,
    out_of_memory,
)
from mlc_rwkv_world.runtime import tvm_runtime
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.runtime.elf import check_library

_AGAIN = "Build or copy the artifact again."


@dataclass(frozen=True)
class Library:
    """A library on a device: its virtual machine and what it says of itself.

    The machine has one set of registers, so calls into it must not overlap.
    """

    path: Path
    device: Any
    machine: Any
    metadata: LibraryMetadata

    def function(self, name: str) -> Any:
        """The exported function `name`; ArtifactError where the library lacks it."""
        try:
            return self.machine[name]
        except AttributeError:
            raise ArtifactError(
                f"{self.path} has no function {name}, so it was not built by this version of "
                "mlc-rwkv-world. Build the model again."
            ) from None

    def failure(self, name: str, error: Exception) -> RwkvWorldError:
        """What to raise where the function `name` failed with inputs that were sound."""
        if is_out_of_memory(error):
            return out_of_memory(f" while {name} of {self.path} ran")
        return ArtifactError(
            f"{self.path}: {name} failed ({_last_words(error, self.path)}). Look at the artifact's "
            "files with `python -m mlc_rwkv_world verify`, or build the model again."
        )


def open_library(path: Path, device: Any) -> Library:
    """Load the library `path` for the TVM `device`.

    Raises ArtifactError where the file is no library, was built for another system, another
    TVM or another revision of this package, or uses instructions that this CPU lacks.
    Loading a library runs code in it: open none that you would not run. What the file says of
    itself is looked at before.
    """
    check_library(path)
    embedded = read_embedded(path)
    if embedded is not None:
        _check_fit(embedded)
    try:
        machine = tvm_runtime.machine(path, device)
        text = machine[abi.METADATA]()
    except (AttributeError, RuntimeError, ValueError, OSError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(f" while {path} was loaded") from error
        raise _not_loaded(path, embedded, error) from error
    metadata = LibraryMetadata.parse(str(text), str(path))
    _check_fit(metadata)
    return Library(path, device, machine, metadata)


def _check_fit(metadata: LibraryMetadata) -> None:
    path = metadata.source
    if metadata.revision != REVISION:
        raise ArtifactError(
            f"{path} was built by revision {metadata.revision} of mlc-rwkv-world, and this is "
            f"revision {REVISION}. Build the model again."
        )
    needed = [*metadata.cpu_features, *_attributes(metadata.target)]
    if missing := missing_features(dict.fromkeys(needed)):
        raise ArtifactError(
            f"{path} was built for another CPU: this one lacks {', '.join(missing)} "
            f"(target: {metadata.target}). Build the model again on this machine."
        )


def _not_loaded(path: Path, embedded: LibraryMetadata | None, error: Exception) -> ArtifactError:
    """Why this TVM did not load a library. Another version may: 0.26 and 0.27 do."""
    from tvm import __version__ as version

    reason = _last_words(error, path)
    built_by = None if embedded is None else embedded.tvm
    if built_by is None or built_by == version:
        return ArtifactError(
            f"{path} cannot be loaded by TVM {version} on this machine ({reason}). "
            "Build the model again."
        )
    return ArtifactError(
        f"{path} was built for another TVM: {built_by}, and TVM {version} here cannot load it "
        f"({reason}). Build the model again, or install apache-tvm=={built_by}."
    )


def open_listed(libraries: Mapping[Path, str], device: Any) -> tuple[Library, list[str]]:
    """The first of the libraries, given with their checksums, that fits here, and why others not.

    Raises ArtifactError where one before it is missing or not as it was built: nothing else runs in
    its place. Where none fits, the error is the last one's.
    """
    passed: list[ArtifactError] = []
    for path, checksum in libraries.items():
        if not path.exists():
            raise ArtifactError(f"{path} is missing. {_AGAIN}")
        check_library(path)
        if (fault := fault_of(path, checksum)) is not None:
            raise ArtifactError(fault if str(path) in fault else f"{path} {fault}. {_AGAIN}")
        try:
            return open_library(path, device), [f"{error}" for error in passed]
        except ArtifactError as error:
            passed.append(error)
    raise passed[-1]


def check_parameters(library: Library, index: ParameterIndex) -> None:
    """Raise ArtifactError where library and parameters come from different builds."""
    fault = belonging(library.metadata, index).fault
    if fault is not None:
        raise ArtifactError(
            f"{library.path} does not belong to the parameters in {index.folder}: {fault}. "
            "Build the model again."
        )


def _attributes(target: str) -> list[str]:
    """The features that a target string or its JSON turns on by name."""
    return re.findall(r"\+([a-z0-9.-]+)", target)


def _last_words(error: Exception, path: Path) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    # dlopen repeats the path before what it found.
    return text.rpartition(f"{path}: ")[2][:200]
