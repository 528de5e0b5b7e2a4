"""Files of tuned states: `.pth` with a tensor `blocks.<i>.att.time_state` [H, N, N] for each block.

A checkpoint that holds its tuned state is one too. They are read as checkpoints are, without torch,
and nothing in them is executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.errors import CheckpointError, StateError

if TYPE_CHECKING:
    from mlc_rwkv_world.checkpoint.stored import StoredTensor

# Every file that torch writes today is a zip archive.
_ZIP = b"PK\x03\x04"
_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.att\.time_state")


def is_torch_file(path: Path) -> bool:
    """Whether torch may have written the file at `path`, if there is one."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except (OSError, ValueError):
        return False


def read_tuned(path: Path, shape: tuple[int, int, int, int]) -> npt.NDArray[np.float32]:
    """The matrices [L, H, N, N] (value, key), of this `shape`, of the tuned state at `path`.

    Raises StateError where the file is damaged, holds something else or another model's.
    """
    # For these files alone; it finds and downloads checkpoints too.
    from mlc_rwkv_world.checkpoint.torch_file import read_torch_file

    try:
        tensors = _by_block(path, read_torch_file(path))
        layers, *matrix = shape
        found = {tensor.shape for tensor in tensors.values()}
        if tensors.keys() != set(range(layers)) or found != {tuple(matrix)}:
            sizes = " and ".join(str(list(size)) for size in sorted(found))
            raise StateError(
                f"{path} is another model's: it has {len(tensors)} blocks with {sizes}, and this "
                f"model has {layers} with {matrix}. Load it with the model that it was tuned for."
            )
        return np.stack([tensors[block].read() for block in range(layers)])
    except CheckpointError as error:
        raise StateError(str(error)) from None


def _by_block(path: Path, stored: list[StoredTensor]) -> dict[int, StoredTensor]:
    from mlc_rwkv_world.checkpoint.names import canonical_name, is_models_own
    from mlc_rwkv_world.checkpoint.stored import FLOAT_WORDS

    tensors: dict[int, StoredTensor] = {}
    holds_one = any(_NAME.fullmatch(tensor.name) for tensor in stored)
    for tensor in stored:
        match = _NAME.fullmatch(tensor.name)
        if match is None and holds_one and is_models_own(canonical_name(tensor.name)):
            continue
        if match is None or tensor.dtype not in FLOAT_WORDS:
            raise StateError(
                f"{path} holds {tensor.name[:60]!r} ({tensor.dtype} {list(tensor.shape)}), and a "
                "tuned state has nothing but floats named 'blocks.0.att.time_state' and so on. "
                "Give such a file, or one that /save or State.save wrote."
            )
        tensors[int(match[1])] = tensor
    if not tensors:
        raise StateError(f"{path} holds no tensors, and so no state.")
    return tensors
