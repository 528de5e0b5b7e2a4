"""What a layer of the recurrent state consists of: fields of whole rows, which a version declares.

A row has D float32. The fields lie one after another, so that a field of several rows is one piece
of memory, whose values a version may see in a shape of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Field:
    """`rows` rows of a layer's state, filled with `fresh` in a new one: all, or each with its."""

    name: str
    rows: int = 1
    fresh: float | tuple[float, ...] = 0.0

    @property
    def initial(self) -> tuple[float, ...]:
        """The value that fills each row of a new one."""
        return self.fresh if isinstance(self.fresh, tuple) else (self.fresh,) * self.rows


class Span(NamedTuple):
    """Where a field lies in its layer: its first row, and how many there are."""

    row: int
    rows: int

    def shape(self, width: Any) -> tuple[Any, ...]:
        """The field's shape for rows of `width`: one row is a vector."""
        return (width,) if self.rows == 1 else (self.rows, width)


def spans(fields: Sequence[Field]) -> list[Span]:
    """Where each field lies."""
    ends = accumulate(field.rows for field in fields)
    return [Span(end - field.rows, field.rows) for field, end in zip(fields, ends, strict=True)]


def initial_rows(fields: Sequence[Field]) -> tuple[float, ...]:
    """The value that fills each row of a new state's layer, [R]."""
    return tuple(value for field in fields for value in field.initial)
