"""The values that a reference gives on its way, one operation after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")
V = TypeVar("V")
# What passes from one block to the next; the residual [T, D] comes first.
Carried = tuple[Array, ...]

# The layer, so to speak, of what is done to the residual after the last block.
RESIDUAL = "residual"


@dataclasses.dataclass(frozen=True)
class Value:
    """What an operation gives: [T, N], or [B, N] where it is of each sequence's last token.

    `name` is that of a layer in its block and, where the layer's own result is changed further,
    what changes it: `attention.receptance`, `attention.receptance sigmoid`.
    """

    name: str
    values: Array

    @property
    def layer(self) -> str:
        """The layer that the value belongs to."""
        return self.name.partition(" ")[0]


# A computation: the values on its way, and what it gives at its end.
Values = Generator[Value, None, T]


def finish(values: Generator[V, None, T], see: Callable[[V], None] = lambda value: None) -> T:
    """Runs a computation to its end; `see` is called with each value on the way."""
    # What leaves a type's range becomes infinite, as it does in compiled code.
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            try:
                see(next(values))
            except StopIteration as end:
                result: T = end.value
                return result
