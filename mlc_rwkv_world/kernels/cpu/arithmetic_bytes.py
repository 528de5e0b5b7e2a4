"""Products of inputs and quantized weights on a CPU as bytes, by the instructions there are."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.activation import SCALE, SUM
from mlc_rwkv_world.kernels.cpu.arithmetic_grouped import Grouped
from mlc_rwkv_world.kernels.cpu.llvm_functions import KEEP, KEEP_IR, ORDER, ORDER_IR
from mlc_rwkv_world.kernels.cpu.packed_weight import OFFSET_4BIT
from mlc_rwkv_world.kernels.signature import STACK, TensorType
from mlc_rwkv_world.storage.stored import ROWS, Stored


class _Bytes(Grouped, abc.ABC):
    """Products of bytes, summed as integers over a group and then scaled."""

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        whole = self.integers(x, token, w, block, step, row)
        return self.scaled(total, whole, x, token, w, block, step, row)

    def scaled(
        self, total: Any, whole: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any
    ) -> Any:
        """`total` and a group's exact sums by the scales of both sides."""
        n = self.lanes
        scale = T.Broadcast(T.reinterpret("float32", x[token, step, SCALE]), n)
        both = self.scale(w, block, step, row) * scale
        return T.fma(T.Cast(f"float32x{n}", whole), both, total)

    @abc.abstractmethod
    def integers(self, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        """The exact sums of a group, int32 x lanes."""

    def start(self, x: Any, token: Any, step: Any, offset: int) -> Any:
        """What makes up for weights that are stored with an offset, int32 x lanes."""
        total = T.reinterpret("int32", x[token, step, SUM])
        return T.Broadcast(total * T.int32(-offset), self.lanes)

    def inputs(self, x: Any, token: Any, step: Any, j: int) -> Any:
        """Four bytes of x for every lane."""
        return T.Broadcast(x[token, step, j], self.lanes)

    def half(self, word: Any, i: Any) -> Any:
        """The bytes in the low (i = 0) or the high (i = 1) halves of 4-bit words."""
        shift = T.Broadcast(T.uint32(4) * i, self.lanes)
        return word >> shift & self.constant(0x0F0F0F0F)

    def halves(self, word: Any) -> tuple[Any, Any]:
        """The bytes in both halves of 4-bit words."""
        return self.half(word, T.uint32(0)), self.half(word, T.uint32(1))


class Avx2(_Bytes):
    """`vpmaddubsw` gives sums of two products as int16: 30480 at most for a group of 4 bits.

    Of 8 bits, two products of signed bytes fit, where the sign moves from one to the other.
    """

    imports = ORDER_IR + KEEP_IR
    vectors = 4

    def __init__(self, weight: TensorType, stored: Stored) -> None:
        super().__init__(weight, stored, 8)
        # Signs that have moved are no use to another row.
        self.tokens = 4 if self.bits == 4 else 1

    def integers(self, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        if self.bits == 4:
            pairs = None
            for j in range(4):
                halves = self.halves(self.word(w, block, step, row, j))
                for i, half in enumerate(halves):
                    two = _pairs(half, self.inputs(x, token, step, 2 * j + i))
                    pairs = two if pairs is None else pairs + two
            return self._finished(pairs, x, token, step)
        total = None
        for j in range(8):
            word = T.reinterpret("int8x32", self.word(w, block, step, row, j))
            size = T.call_llvm_pure_intrin("int8x32", "llvm.abs.v32i8", word, T.bool(False))
            moved = T.call_llvm_pure_intrin(
                "int8x32",
                "llvm.x86.avx2.psign.b",
                T.reinterpret("int8x32", self.inputs(x, token, step, j)),
                word,
            )
            two = _widened(_pairs(size, moved))
            total = two if total is None else total + two
        return total

    def _finished(self, pairs: Any, x: Any, token: Any, step: Any) -> Any:
        return _widened(pairs) + self.start(x, token, step, OFFSET_4BIT)

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """For 4 bits: two vectors of rows side by side, for which all sums stay in registers."""
        if self.bits == 8 or tokens == 1:
            return None
        n = self.lanes

        @T.inline
        def add_group(
            x: Any, first: Any, last: Any, w: Any, block: Any, step: Any, total: Any, at: Any
        ) -> None:
            pairs = T.alloc_buffer((2 * tokens * 16,), "int16", scope=STACK)
            halves = T.alloc_buffer((2 * n,), "uint32", scope=STACK)
            for part in T.serial(ROWS // n // 2):
                for i in T.unroll(2 * tokens):
                    pairs[T.Ramp(i * 16, 1, 16)] = T.Broadcast(T.int16(0), 16)
                for j in T.unroll(4):
                    for i in T.unroll(2):
                        T.evaluate(T.call_extern("void", ORDER))
                        for v in T.unroll(2):
                            halves[T.Ramp(v * n, 1, n)] = self.half(
                                self.word(w, block, step, (2 * part + v) * n, j),
                                T.cast(i, "uint32"),
                            )
                        for t in T.unroll(tokens):
                            for v in T.unroll(2):
                                pairs[T.Ramp((v * tokens + t) * 16, 1, 16)] = T.call_extern(
                                    "int16x16",
                                    KEEP,
                                    pairs[T.Ramp((v * tokens + t) * 16, 1, 16)]
                                    + _pairs(
                                        halves[T.Ramp(v * n, 1, n)],
                                        self.inputs(x, T.min(first + t, last), step, 2 * j + i),
                                    ),
                                )
                for v in T.unroll(2):
                    for t in T.unroll(tokens):
                        total[T.Ramp(at + t * ROWS + (2 * part + v) * n, 1, n)] = self.scaled(
                            total[T.Ramp(at + t * ROWS + (2 * part + v) * n, 1, n)],
                            self._finished(
                                pairs[T.Ramp((v * tokens + t) * 16, 1, 16)],
                                x,
                                T.min(first + t, last),
                                step,
                            ),
                            x,
                            T.min(first + t, last),
                            w,
                            block,
                            step,
                            (2 * part + v) * n,
                        )

        chosen: Callable[..., None] = add_group
        return chosen


def _pairs(unsigned: Any, signed: Any) -> Any:
    return T.call_llvm_pure_intrin(
        "int16x16",
        "llvm.x86.avx2.pmadd.ub.sw",
        T.reinterpret("int8x32", unsigned),
        T.reinterpret("int8x32", signed),
    )


def _widened(pairs: Any) -> Any:
    """Sums of two int16 as int32."""
    return T.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.Broadcast(T.int16(1), 16)
    )


class Dot(_Bytes):
    """Adds four products of bytes to an int32: `vpdpbusd`, of unsigned weights, and `sdot`."""

    imports = ORDER_IR

    def __init__(
        self, weight: TensorType, stored: Stored, lanes: int, name: str, *, unsigned: bool
    ) -> None:
        super().__init__(weight, stored, lanes)
        self.vectors = ROWS // lanes
        # The sums of so many, and of both vectors of rows, stay in AVX-512's 32 registers.
        self.tokens = 8 if lanes == 16 else 4
        self._name = name
        self._unsigned = unsigned
        self._offset = OFFSET_4BIT if self.bits == 4 else 128 if unsigned else 0

    def integers(self, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        total = self.start(x, token, step, self._offset)
        for j in range(self.bits):
            parts = self._parts(self.word(w, block, step, row, j))
            for i, part in enumerate(parts):
                given = self.inputs(x, token, step, len(parts) * j + i)
                total = dot_bytes(self._name, self.lanes, total, part, given)
        return total

    def _parts(self, word: Any) -> tuple[Any, ...]:
        """The bytes of a word as factors, four a lane."""
        if self.bits == 4:
            return self.halves(word)
        return (word ^ self.constant(0x80808080) if self._unsigned else word,)

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """For several rows on x86: each part of a vector of weights serves all, then is gone.

        Inputs come from memory each time, as the instruction's own operands.
        """
        if tokens == 1 or not self._unsigned:
            return None
        n, parts = self.lanes, 8 // self.bits

        @T.inline
        def add_group(
            x: Any, first: Any, last: Any, w: Any, block: Any, step: Any, total: Any, at: Any
        ) -> None:
            sums = T.alloc_buffer((tokens * n,), "int32", scope=STACK)
            for v in T.unroll(ROWS // n):
                T.evaluate(T.call_extern("void", ORDER))
                for t in T.unroll(tokens):
                    sums[T.Ramp(t * n, 1, n)] = self.start(
                        x, T.min(first + t, last), step, self._offset
                    )
                for j in T.unroll(self.bits):
                    for i in T.unroll(parts):
                        for t in T.unroll(tokens):
                            sums[T.Ramp(t * n, 1, n)] = dot_bytes(
                                self._name,
                                n,
                                sums[T.Ramp(t * n, 1, n)],
                                self._part(self.word(w, block, step, v * n, j), i),
                                self.inputs(x, T.min(first + t, last), step, parts * j + i),
                            )
                for t in T.unroll(tokens):
                    total[T.Ramp(at + t * ROWS + v * n, 1, n)] = self.scaled(
                        total[T.Ramp(at + t * ROWS + v * n, 1, n)],
                        sums[T.Ramp(t * n, 1, n)],
                        x,
                        T.min(first + t, last),
                        w,
                        block,
                        step,
                        v * n,
                    )

        chosen: Callable[..., None] = add_group
        return chosen

    def _part(self, word: Any, i: Any) -> Any:
        return self.half(word, T.cast(i, "uint32")) if self.bits == 4 else self._parts(word)[0]


def dot_bytes(name: str, lanes: int, total: Any, weights: Any, given: Any) -> Any:
    """`total` (int32 x lanes) and four products of bytes in each lane, by an instruction."""
    kind = f"int8x{4 * lanes}"
    return T.call_llvm_pure_intrin(
        f"int32x{lanes}", name, total, T.reinterpret(kind, weights), T.reinterpret(kind, given)
    )
