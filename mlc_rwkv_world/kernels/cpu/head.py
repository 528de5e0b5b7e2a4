"""What recurrences by head on a CPU are built of: a head's vectors and its matrix in the pool.

A head's N channels are N / lanes vectors, and its matrix S [key channel, value channel] is one
piece of memory. Products are added by `T.fma`, so that no context decides whether that is rounded
once or twice: the same values give the same bits in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.features import lanes, vector_registers
from mlc_rwkv_world.kernels.signature import STACK, Signature


class Head:
    """A head of `size` channels, a multiple of 32, for one target."""

    def __init__(self, sig: Signature, size: int) -> None:
        self.size = size
        self.lanes = lanes(sig.target)
        self.vectors = size // self.lanes
        # Vectors of value channels whose sums stay in registers, beside as many of operands.
        few = self.lanes > 4 or vector_registers(sig.target) == 16
        self.side = next(n for n in (4 if few else 8, 4, 2, 1) if self.vectors % n == 0)

    def at(self, first: Any, j: Any) -> Any:
        """Vector j of the channels from `first` on."""
        return T.Ramp(first + j * self.lanes, 1, self.lanes)

    def constant(self, value: Any) -> Any:
        """A vector of one number, or of a scalar expression."""
        number = T.float32(value) if isinstance(value, float) else value
        return T.Broadcast(number, self.lanes)

    def summed(self) -> Callable[..., None]:
        """`add(part)`: the sum of a local vector [lanes] to part[0], by halves."""

        @T.inline
        def done(part: Any) -> None:
            part[0] = part[0] + part[1]

        def halved(half: int) -> Callable[..., None]:
            if half == 1:
                return cast(Callable[..., None], done)
            rest = halved(half // 2)

            @T.inline
            def add(part: Any) -> None:
                part[T.Ramp(0, 1, half)] = part[T.Ramp(0, 1, half)] + part[T.Ramp(half, 1, half)]
                rest(part)

            return cast(Callable[..., None], add)

        return halved(self.lanes // 2)

    def normalized(self, eps: float) -> Callable[..., None]:
        """`norm(values, part)`: N local values to mean 0, deviation 1; `part` is room [lanes]."""
        at, constant, vectors, add = self.at, self.constant, self.vectors, self.summed()
        inverse = 1.0 / self.size

        @T.inline
        def norm(values: Any, part: Any) -> None:
            stat = T.alloc_buffer((1,), "float32", scope=STACK)
            part[at(0, 0)] = constant(0.0)
            for j in T.unroll(vectors):
                part[at(0, 0)] = part[at(0, 0)] + values[at(0, j)]
            add(part)
            stat[0] = part[0] * T.float32(inverse)
            part[at(0, 0)] = constant(0.0)
            for j in T.unroll(vectors):
                values[at(0, j)] = values[at(0, j)] - constant(stat[0])
                part[at(0, 0)] = T.fma(values[at(0, j)], values[at(0, j)], part[at(0, 0)])
            add(part)
            stat[0] = T.float32(1) / T.sqrt(T.fma(part[0], T.float32(inverse), T.float32(eps)))
            for j in T.unroll(vectors):
                values[at(0, j)] = values[at(0, j)] * constant(stat[0])

        chosen: Callable[..., None] = norm
        return chosen


def matrix_at(shape: Any, slot: Any, layer: Any, row: Any, head: Any, size: int) -> Any:
    """Where a head's matrix begins in the pool [S, L, R, D] as one piece of memory.

    The heads' matrices are rows of the pool's layer from `row` on.
    """
    _, layers, rows, width = shape
    place = (slot * T.int64(int(layers)) + layer) * T.int64(int(rows)) + row
    return place * T.int64(int(width)) + T.cast(head, "int64") * T.int64(size * size)
