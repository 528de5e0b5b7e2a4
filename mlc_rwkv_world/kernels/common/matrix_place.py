"""Where a head's matrix stands in the rows of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T


def matrix_place(width: int, size: int, *, pooled: bool) -> Callable[..., tuple[Any, ...]]:
    """`index(s, slot, layer, row, h, j, c)`: of S[key channel j, value channel c] of head h.

    In our pool, in rows from `row` on of a slot's layer; else in those of sequence s. A head's
    matrix is one piece of memory, which the rows [N, D] cut in another way.
    """
    heads = width // size

    def index(s: Any, slot: Any, layer: Any, row: Any, h: Any, j: Any, c: Any) -> tuple[Any, ...]:
        at = h * T.int64(size) + j
        down, column = T.truncdiv(at, T.int64(heads)), T.truncmod(at, T.int64(heads))
        across = column * T.int64(size) + c
        return (slot, layer, row + down, across) if pooled else (s, down, across)

    return index
