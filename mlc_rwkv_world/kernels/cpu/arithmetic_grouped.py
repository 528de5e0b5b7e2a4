"""What products with quantized weights on a CPU share, and those in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.llvm_functions import ORDER, ORDER_IR
from mlc_rwkv_world.kernels.cpu.packed_weight import OFFSET_4BIT
from mlc_rwkv_world.kernels.signature import STACK, TensorType
from mlc_rwkv_world.storage.stored import ROWS, Stored


class Grouped:
    """What every arithmetic on records of a quantized weight shares."""

    grouped = True
    imports = ""
    streams = 2

    def __init__(self, weight: TensorType, stored: Stored, lanes: int) -> None:
        self.weight, self.stored, self.lanes = weight, stored, lanes
        self.bits = stored.bits

    def steps(self) -> int:
        return self.weight.static(1)

    def tile(self, tokens: int) -> Callable[..., None] | None:
        return None

    def word(self, w: Any, block: Any, step: Any, row: Any, j: int) -> Any:
        """Word j of each row, uint32 x lanes."""
        return w[block, step, T.Ramp(row * self.bits + j * self.lanes, 1, self.lanes)]

    def scale(self, w: Any, block: Any, step: Any, row: Any) -> Any:
        """The scale of each row, float32 x lanes."""
        n, first = self.lanes, self.bits * ROWS
        if self.stored.dtype == "float32":
            return T.reinterpret(f"float32x{n}", w[block, step, T.Ramp(first + row, 1, n)])
        words = w[block, step, T.Ramp(first + row // 2, 1, n // 2)]
        return T.Cast(f"float32x{n}", T.reinterpret(f"float16x{n}", words))

    def constant(self, value: int) -> Any:
        return T.Broadcast(T.uint32(value), self.lanes)


class Unpacked(Grouped):
    """float32 sums of a quantized weight, whose values become float32 as they are read."""

    imports = ORDER_IR
    tokens, vectors = 4, 2

    # All its products go by tiles.
    add = None

    def _value(self, word: Any, i: Any) -> Any:
        """Value i (uint32) of each word, float32 x lanes."""
        n, signed = self.lanes, f"int32x{self.lanes}"
        if self.bits == 8:
            up = T.reinterpret(signed, word << T.Broadcast(T.uint32(24) - T.uint32(8) * i, n))
            return T.Cast(f"float32x{n}", up >> T.Broadcast(T.int32(24), n))
        shift = T.uint32(8) * (i & T.uint32(3)) + (i & T.uint32(4))
        low = T.reinterpret(signed, word >> T.Broadcast(shift, n) & self.constant(15))
        return T.Cast(f"float32x{n}", low - T.Broadcast(T.int32(OFFSET_4BIT), n))

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """Each value of a few vectors of rows becomes float32 once, for all tokens."""
        n, group, each = self.lanes, self.stored.group, self.stored.group // self.bits
        side = min(2 if tokens > 1 else 4, ROWS // n)

        @T.inline
        def add_group(
            x: Any, first: Any, last: Any, w: Any, block: Any, step: Any, total: Any, at: Any
        ) -> None:
            sums = T.alloc_buffer((side * tokens * n,), "float32", scope=STACK)
            value = T.alloc_buffer((side * n,), "float32", scope=STACK)
            for part in T.serial(ROWS // n // side):
                for i in T.unroll(side * tokens):
                    sums[T.Ramp(i * n, 1, n)] = T.Broadcast(T.float32(0), n)
                for j in T.unroll(self.bits):
                    for i in T.unroll(each):
                        T.evaluate(T.call_extern("void", ORDER))
                        for v in T.unroll(side):
                            value[T.Ramp(v * n, 1, n)] = self._value(
                                self.word(w, block, step, (side * part + v) * n, j),
                                T.cast(i, "uint32"),
                            )
                        for t in T.unroll(tokens):
                            for v in T.unroll(side):
                                sums[T.Ramp((v * tokens + t) * n, 1, n)] = T.fma(
                                    T.Broadcast(
                                        x[T.min(first + t, last), step * group + j * each + i],
                                        n,
                                    ),
                                    value[T.Ramp(v * n, 1, n)],
                                    sums[T.Ramp((v * tokens + t) * n, 1, n)],
                                )
                for v in T.unroll(side):
                    for t in T.unroll(tokens):
                        total[T.Ramp(at + t * ROWS + (side * part + v) * n, 1, n)] = T.fma(
                            sums[T.Ramp((v * tokens + t) * n, 1, n)],
                            self.scale(w, block, step, (side * part + v) * n),
                            total[T.Ramp(at + t * ROWS + (side * part + v) * n, 1, n)],
                        )

        chosen: Callable[..., None] = add_group
        return chosen
