"""One of several tensors or numbers, as a number tells while a kernel runs.

So what is done to several tensors stands once in a kernel's code, whose tiles are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.llvm_functions import CHOOSE
from mlc_rwkv_world.tvm_names import with_type


def chosen(index: Any, ends: Sequence[int], values: Sequence[int]) -> Any:
    """The value n, as int32, for an index from ends[n - 1] to before ends[n]."""
    found = T.int32(values[-1])
    # Where they are equal there is nothing to choose.
    if len(set(values)) > 1:
        for end, value in reversed(list(zip(ends, values[:-1], strict=False))):
            found = T.Select(index < end, T.int32(value), found)
    return found


def chosen_data(index: Any, ends: Sequence[int], tensors: Sequence[Any]) -> Any:
    """Where the values of `chosen` of tensors are. The kernel needs `CHOOSE_IR`."""
    found = tensors[-1].data
    for end, tensor in reversed(list(zip(ends, tensors[:-1], strict=False))):
        found = with_type(T.call_extern("handle", CHOOSE, index < end, tensor.data, found), found)
    return found
