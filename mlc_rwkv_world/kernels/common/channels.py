"""How a kernel that treats each channel alone is laid over a CPU's or a GPU's threads.

A row of D channels is cut into `blocks` pieces. On a CPU a piece is one vector and pieces run in
parallel; on a GPU a piece is one thread block and each thread has one channel. A kernel writes

    for piece in grid.outer(rows * grid.blocks):
        for thread in grid.threads():
            row, first = grid.row(piece), grid.channel(piece, thread)
            for lane in T.vectorized(grid.lanes):
                ... x[row, first + lane] ...

and is right on both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.signature import Signature, parallel_if_worth


def _largest_divisor(value: int, *candidates: int) -> int:
    return next((c for c in candidates if value % c == 0), 1)


class Channels:
    """The loops over rows of D channels for one target.

    `rows` is how many there are, if that is known when compiling; `cost` is about how many copies
    one channel's work is worth.
    """

    def __init__(self, width: int, sig: Signature, rows: Any = None, cost: int = 1) -> None:
        self.width = width
        if sig.on_cpu:
            self.lanes = _largest_divisor(width, 16, 8, 4, 2)
            self._threads = 1
            steps = rows * width * cost if isinstance(rows, int) else None
            self.outer: Any = parallel_if_worth(steps)
        else:
            self.lanes = 1
            self._threads = _largest_divisor(width, 64, 32, 16, 8, 4, 2)
            self.outer = partial(T.thread_binding, thread="blockIdx.x")
        self._on_cpu = sig.on_cpu
        self.blocks = width // (self.lanes * self._threads)

    def threads(self) -> Any:
        """The loop over the threads of a piece."""
        if self._on_cpu:
            return T.serial(1)
        return T.thread_binding(self._threads, thread="threadIdx.x")

    def row(self, piece: Any) -> Any:
        """The row that a piece belongs to."""
        return T.truncdiv(piece, T.int64(self.blocks))

    def channel(self, piece: Any, thread: Any) -> Any:
        """The first channel of one thread of a piece; its lanes follow."""
        base = T.truncmod(piece, T.int64(self.blocks)) * T.int64(self.lanes * self._threads)
        return base + T.cast(thread, "int64") * T.int64(self.lanes)
