"""The values of a weight as expressions, however it is stored; see `storage.stored`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from mlc_rwkv_world.storage import Stored


def unpack(word: Any, position: Any, stored: Stored) -> Any:
    """The value at `position` (an integer or int32) of a word, as float32, before scaling."""
    shift = tirx.Cast("uint32", position * stored.bits)
    field = (word >> shift) & tirx.const((1 << stored.bits) - 1, "uint32")
    return (field.astype("int32") - stored.offset).astype("float32")


def value(stored: Stored, tensors: Sequence[Any], n: Any, k: Any, dtype: str) -> Any:
    """The value at (n, k) of a weight that is stored in these tensors, in `dtype`."""
    if not stored.bits:
        return tensors[0][n, k].astype(dtype)
    words, scales = tensors
    count = stored.per_element
    scale = scales[n, k // stored.group if stored.group else 0].astype(dtype)
    position = (k % count).astype("int32")
    return unpack(words[n, k // count], position, stored).astype(dtype) * scale
