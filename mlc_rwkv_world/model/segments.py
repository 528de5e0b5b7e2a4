"""How the rows of a forward pass divide into sequences.

A model asks its segments for all that crosses rows: the previous token, the last token. So one
definition of a model serves prefill, decode and batches.
"""

from __future__ import annotations

from typing import Any, Protocol

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.model import operations as ops
from mlc_rwkv_world.model.parts import Part


class Segments(Protocol):
    """T rows that belong to B sequences; `offsets` int32 [B + 1], None where each has one."""

    offsets: Tensor | None

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        """The row before each row of x [T, D], `last` [B, D] before each sequence's first."""

    def last(self, x: Tensor) -> Tensor:
        """The last row of each sequence, [B, D]."""


class Steps:
    """Each row is the next token of a sequence of its own (decode)."""

    offsets = None

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        return last

    def last(self, x: Tensor) -> Tensor:
        return x


class Ragged:
    """`count` sequences of any lengths, one after another (prefill)."""

    def __init__(self, offsets: Tensor, count: Any) -> None:
        self.offsets = offsets
        self.count = count

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        return ops.token_shift(x, last, self.offsets)

    def last(self, x: Tensor) -> Tensor:
        return ops.last_token(x, self.offsets, self.count)


def segments_of(part: Part, count: Any) -> Segments:
    """Those of a part that is being decomposed, for `count` sequences."""
    return Ragged(part.tensor(OFFSETS), count) if OFFSETS in part else Steps()
