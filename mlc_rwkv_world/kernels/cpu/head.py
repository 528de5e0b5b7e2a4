"""What recurrences by head on a CPU are built of: a head's vectors and its matrix in the pool.

A head's N channels are N / lanes vectors, and its matrix S [key channel, value channel] is one
piece of memory. Products are added by `T.fma`, so that no context decides whether that is rounded
once or twice: the same values give the same bits in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cpu.chosen import chosen, chosen_data
from mlc_rwkv_world.kernels.cpu.features import lanes, vector_registers
from mlc_rwkv_world.kernels.cpu.llvm_functions import CHOOSE_IR, IMPORT
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType
from mlc_rwkv_world.storage.stored import ROWS, Stored


class Head:
    """A head of `size` channels, a multiple of 32, for one target."""

    def __init__(self, sig: Signature, size: int) -> None:
        self.sig = sig
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

        done: Callable[..., None] = norm
        return done

    def ups(
        self, inputs: Sequence[TensorType], weights: Sequence[TensorType], stored: Sequence[Stored]
    ) -> Callable[..., None]:
        """`ups(given, head, tile, rows, total, out)`: a head's rows of small products' second
        factors, `given` being x and w of each.

        Those of product n go to out, a local buffer, from n * tokens * N on, for the tile's tokens,
        which are those of a `Product` of these types; `total` is room [tokens * 32].
        """
        # One block at a time, since a head's lie together.
        of_one = [TensorType((1, *w.shape[1:]), w.dtype) for w in weights]
        products = [Product(*one, self.sig) for one in zip(inputs, of_one, stored, strict=True)]
        assert len({one.body for one in products}) == 1
        x_type, w_type = inputs[0], weights[0]
        multiply, tokens, groups = products[0].tile(), products[0].tokens, self.size // ROWS
        size, lanes, blocks = self.size, self.lanes, weights[0].static(0)
        ends = range(1, len(products) + 1)
        steps, widths = ([ty.static(1) for ty in types] for types in (weights, inputs))

        def data(number: Any, given: Any, which: int) -> Any:
            return chosen_data(number, ends, [one[which] for one in given])

        @T.inline
        def ups(given: Any, head: Any, tile: Any, rows: Any, total: Any, out: Any) -> None:
            T.attr(T.int32(0), IMPORT, CHOOSE_IR)
            for number in range(len(products)):
                # In memory, so that TVM does not look through them wherever they are used.
                extents = T.alloc_buffer((2,), "int32", scope=STACK)
                extents[0] = chosen(number, ends, widths)
                extents[1] = chosen(number, ends, steps)
                width: T.let[T.int32] = extents[0]
                count: T.let[T.int32] = extents[1]
                x_data: T.let[T.handle(x_type.dtype)] = data(number, given, 0)
                w_data: T.let[T.handle(w_type.dtype)] = data(number, given, 1)
                x = T.decl_buffer((rows, width, *x_type.shape[2:]), x_type.dtype, data=x_data)
                w = T.decl_buffer((blocks, count, *w_type.shape[2:]), w_type.dtype, data=w_data)
                for n in range(groups):
                    multiply(x, w, head * groups + n, tile, rows, total)
                    for t in T.unroll(tokens):
                        for j in T.unroll(ROWS // lanes):
                            out[
                                T.Ramp(
                                    (number * tokens + t) * size + n * ROWS + j * lanes, 1, lanes
                                )
                            ] = total[T.Ramp(t * ROWS + j * lanes, 1, lanes)]

        done: Callable[..., None] = ups
        return done

    def places(self, pool: TensorType, step: bool) -> Callable[..., None]:
        """`find(row, head, offsets, slots, layer, state_row, sequence, place)` for rows in turn.

        It sets sequence[0], which begins as 0, to the one that a row belongs to, and place[0] and
        place[1] to where the head's matrix is read and written, in the pool as one piece of memory:
        the heads' matrices are rows of its layer from `state_row` on. In a `step` row i is the next
        token of sequence i, and there are no offsets.
        """
        layers, height, width = (pool.static(axis) for axis in (1, 2, 3))
        matrix = self.size * self.size

        def at(slot: Any, layer: Any, state_row: Any, head: Any) -> Any:
            row = (slot * T.int64(layers) + layer) * T.int64(height) + state_row
            return row * T.int64(width) + T.cast(head, "int64") * T.int64(matrix)

        @T.inline
        def find(
            row: Any,
            head: Any,
            offsets: Any,
            slots: Any,
            layer: Any,
            state_row: Any,
            sequence: Any,
            place: Any,
        ) -> None:
            if step:
                sequence[0] = T.cast(row, "int64")
            elif T.cast(row, "int32") == offsets[sequence[0] + T.int64(1)]:
                sequence[0] = sequence[0] + T.int64(1)
            place[1] = at(write_slot(slots, sequence[0]), layer, state_row, head)
            place[0] = place[1]
            if step or T.cast(row, "int32") == offsets[sequence[0]]:
                place[0] = at(read_slot(slots, sequence[0]), layer, state_row, head)

        done: Callable[..., None] = find
        return done
