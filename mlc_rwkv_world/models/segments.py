"""How the rows of a forward pass divide into sequences.

A model asks its segments for all that crosses rows: the previous token, the last token, the
recurrence. So one definition of a model serves prefill, decode and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.models import operations as ops

Recurrence = tuple[Tensor, Tensor, Tensor, Tensor]


class Segments(Protocol):
    """T rows that belong to B sequences."""

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        """The row before each row of x [T, D], `last` [B, D] before each sequence's first."""

    def last(self, x: Tensor) -> Tensor:
        """The last row of each sequence, [B, D]."""

    def wkv(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Sequence[Tensor]
    ) -> Recurrence:
        """The RWKV-4 recurrence along each sequence: output [T, D] and new a, b, p [B, D]."""


class Steps:
    """Each row is the next token of a sequence of its own (decode)."""

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        return last

    def last(self, x: Tensor) -> Tensor:
        return x

    def wkv(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Sequence[Tensor]
    ) -> Recurrence:
        return ops.wkv_step(k, v, decay, first, state)


class Ragged:
    """`count` sequences of any lengths, one after another (prefill); offsets is int32 [B + 1]."""

    def __init__(self, offsets: Tensor, count: Any) -> None:
        self.offsets = offsets
        self.count = count

    def previous(self, x: Tensor, last: Tensor) -> Tensor:
        return ops.token_shift(x, last, self.offsets)

    def last(self, x: Tensor) -> Tensor:
        return ops.last_token(x, self.offsets, self.count)

    def wkv(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Sequence[Tensor]
    ) -> Recurrence:
        return ops.wkv(k, v, decay, first, state, self.offsets)
