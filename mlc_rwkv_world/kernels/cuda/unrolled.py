"""The same code for each of some tensors, in kernels whose Python lists hold them."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


@T.inline
def each(action, count):  # type: ignore[no-untyped-def]
    """`action(n)` for each of up to seven tensors, whose numbers are Python's."""
    if count > 0:
        action(0)
    if count > 1:
        action(1)
    if count > 2:
        action(2)
    if count > 3:
        action(3)
    if count > 4:
        action(4)
    if count > 5:
        action(5)
    if count > 6:
        action(6)


def place(tensor: Any, *indices: Any) -> Any:
    """A value of a tensor, for whoever knows its first indices before the others."""
    return tensor[indices]
