"""Files that hold a recurrent state: safetensors with a checksum and the model's identity.

tensors     state float32 [L, R, D], and what else the writer adds under its own names
metadata    format, version, model (identity), sha256 (over everything else)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.errors import NotFoundError, StateError

FORMAT = "mlc-rwkv-world state"
VERSION = "1"
STATE = "state"
# A safetensors file begins with the length of its header, and the header with the metadata.
KIND = Kind(
    "state", re.compile(rb'.{8}\{"__metadata__":\{[^{}]*"format":"%b"' % FORMAT.encode(), re.S)
)
# Beside the state itself: history of penalties, random generator, header.
MAX_EXTRA_BYTES = 16 << 20
# Holds the header of every state file, which names its format.
_HEAD = 1 << 14


@dataclass(frozen=True)
class StateFile:
    """The content of a state file; `model` is the identity of the model that it belongs to."""

    model: str
    state: npt.NDArray[np.float32]
    extra: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def count(self, key: str) -> int:
        """The number in the note `key`, 0 where there is none; StateError where it is no count."""
        text = self.notes.get(key, "0")
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise StateError(f"The state file is damaged: its {key} is {text[:20]!r}.")
        return int(text)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; of what is there, only a state is replaced.

        Raises UsageError where something else is there, StorageError where it cannot be written.
        """
        from safetensors.numpy import save

        tensors = {STATE: self.state, **self.extra}
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        metadata = {**self.notes, "format": FORMAT, "version": VERSION, "model": self.model}
        metadata["sha256"] = _digest(tensors, metadata)
        Output(path, KIND).write(save(tensors, metadata))

    @classmethod
    def read(cls, path: Path, *, model: str, shape: tuple[int, ...]) -> StateFile:
        """Read the file at `path`, which must hold a state of this `shape` for this `model`.

        Raises NotFoundError where there is no such file, and StateError where it is no state
        file, damaged, of a later version, or another model's.
        """
        if "\0" in str(path):
            raise NotFoundError(f"{str(path)!r} is no name of a file.")
        if path.exists() and not path.is_file():
            # A pipe or a device would block or never end.
            raise StateError(
                f"{path} is not a regular file. Give a file that /save or State.save wrote."
            )
        try:
            with path.open("rb") as file:
                size, expected = os.fstat(file.fileno()).st_size, int(np.prod(shape)) * 4
                # Checked before reading, so that a huge file costs nothing.
                if not expected <= size <= expected + MAX_EXTRA_BYTES:
                    raise _other_file(path, file.read(_HEAD), size, expected)
                data = file.read(expected + MAX_EXTRA_BYTES)
        except FileNotFoundError:
            raise NotFoundError(f"The state file {path} does not exist.") from None
        except OSError as error:
            raise StateError(
                f"{path} cannot be read: {error.strerror}. Give a file that /save or "
                "State.save wrote."
            ) from error
        tensors, metadata = _parse(path, data)
        digest = metadata.pop("sha256", None)
        if metadata.get("version") != VERSION:
            raise StateError(
                f"{path} has version {metadata.get('version')!r} of the state format, and this "
                f"program reads version {VERSION}. Update mlc-rwkv-world."
            )
        if digest != _digest(tensors, metadata):
            raise StateError(f"{path} is damaged: its checksum does not match. Save it again.")
        if metadata.get("model") != model:
            raise StateError(
                f"{path} belongs to the model {metadata.get('model')!r:.14}…, and this one is "
                f"{model!r:.14}…. Load it with the artifact that it was saved with."
            )
        state = tensors.pop(STATE, None)
        if state is None or state.shape != shape or state.dtype != np.float32:
            found = "nothing" if state is None else f"{state.dtype} {list(state.shape)}"
            raise StateError(f"{path} holds {found} where a float32 {list(shape)} was expected.")
        if not np.isfinite(state).all():
            raise StateError(f"{path} holds values that are not finite. Start a new conversation.")
        for key in ("format", "version", "model"):
            del metadata[key]
        return cls(model, state, tensors, metadata)


def _other_file(path: Path, head: bytes, size: int, expected: int) -> StateError:
    """What to raise for a file of a size that no state of this model has."""
    if FORMAT.encode() in head:
        what = f"{size} bytes where {expected} are the least. It is another model's, or cut short"
        way_out = "Load it with the artifact that it was saved with."
    else:
        what = f"it begins with {head[:8]!r} and is no state file" if head else "it is empty"
        way_out = "Give a file that /save or State.save wrote with the same artifact."
    return StateError(f"{path} does not have the size of a state of this model: {what}. {way_out}")


def _parse(path: Path, data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; StateError where it is none of ours."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        # `load` has checked the header; it does not give the metadata in it.
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is no state file, or a damaged one: {error}.") from None
    if metadata.get("format") != FORMAT:
        raise StateError(f"{path} is a safetensors file, but not one that holds a state.")
    return tensors, metadata


def _digest(tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        row = [name, str(value.dtype), list(value.shape)]
        digest.update(json.dumps(row).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
