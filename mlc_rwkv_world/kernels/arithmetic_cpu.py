"""What one step of a product along K computes in, by the CPU's instructions and the weight's form.

An arithmetic adds a step's products to sums of `lanes` rows of a packed weight. For quantized
inputs and weights a step is a group of 32 values, multiplied as integers and scaled once; for plain
ones it is one value, or a pair of bfloat16.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Protocol

from tvm.script import tirx as T
from tvm.target import Target

from mlc_rwkv_world.kernels import bfloat16
from mlc_rwkv_world.kernels.activation import SCALE, SUM, quantized_type
from mlc_rwkv_world.kernels.cpu_features import (
    dots_of_bfloat16,
    features,
    lanes,
    vector_registers,
)
from mlc_rwkv_world.kernels.llvm_functions import (
    DOT_BFLOAT16,
    KEEP,
    KEEP_IR,
    ORDER,
    ORDER_IR,
    dot_bfloat16_ir,
)
from mlc_rwkv_world.kernels.packed_weight import (
    OFFSET_4BIT,
    ROWS,
    packed_bits,
    packed_scale_dtype,
)
from mlc_rwkv_world.kernels.packing import GROUP_SIZE
from mlc_rwkv_world.kernels.signature import STACK, TensorType

INT8 = "int8"
FLOAT32 = "float32"
BFLOAT16 = "bfloat16"


class Arithmetic(Protocol):
    """How sums of rows grow; x and w are the buffers of a packed weight and its input."""

    lanes: int
    tokens: int
    vectors: int
    # What kernels import, see `llvm_functions`.
    imports: str
    # Blocks of a weight to read side by side where each is used once, as measured.
    streams: int
    grouped: bool

    def steps(self) -> int:
        """How many steps K takes."""

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        """`total` (float32 x lanes) and the products of one step for the rows from `row` on."""

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """`add_group(x, first, last, w, block, step, total, at)`, or None where `add` is as good.

        It adds one step of a block of W and `tokens` rows of x, from `first` on and at most `last`,
        to the tokens * 32 sums in `total` from `at` on.
        """


def takes_bytes(x: TensorType) -> bool:
    """Whether an input has been quantized, see `activation`."""
    return x.dtype == "uint32"


def input_type(rows: Any, weight: TensorType, arithmetic: str) -> TensorType:
    """The type in which a product with a packed weight takes its input."""
    if weight.dtype == bfloat16.BITS:
        return TensorType((rows, 2 * weight.static(1)), bfloat16.BITS)
    if weight.dtype != "uint32":
        return TensorType((rows, weight.static(1)), FLOAT32)
    inner = weight.static(1) * GROUP_SIZE
    return quantized_type(rows, inner) if arithmetic == INT8 else TensorType((rows, inner), FLOAT32)


def arithmetic_of(x: TensorType, weight: TensorType, target: Target) -> Arithmetic:
    """The arithmetic for an input and a packed weight of these types."""
    have, wide, registers = features(target), lanes(target), vector_registers(target)
    if weight.dtype == bfloat16.BITS:
        return _Bfloat16(weight, wide, registers, dots_of_bfloat16(target))
    if not takes_bytes(x):
        plain = weight.dtype != "uint32"
        return _Plain(weight, wide, registers) if plain else _Unpacked(weight, wide)
    if "avx512vnni" in have or "avxvnni" in have:
        return _Dot(weight, wide, f"llvm.x86.avx512.vpdpbusd.{32 * wide}", unsigned=True)
    if "avx2" in have:
        return _Avx2(weight)
    return _Dot(weight, wide, "llvm.aarch64.neon.sdot.v4i32.v16i8", unsigned=False)


def _broadcast(value: Any, lanes: int) -> Any:
    return T.Broadcast(value, lanes)


def _tile(lanes: int, registers: int) -> tuple[int, int]:
    """Rows of x and vectors of W whose sums fill the registers, with room for operands."""
    vectors = min(ROWS // lanes, 2 if registers == 16 else 4)
    return (6 if vectors <= 4 else 3), vectors


class _Plain:
    """float32 sums of a plain weight, converted as it is read."""

    grouped = False
    imports = ""
    streams = 4

    def __init__(self, weight: TensorType, lanes: int, registers: int) -> None:
        self.weight, self.lanes = weight, lanes
        self.tokens, self.vectors = _tile(lanes, registers)

    def steps(self) -> int:
        return self.weight.static(1)

    def tile(self, tokens: int) -> Callable[..., None] | None:
        return None

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        n = self.lanes
        rows = T.Cast(f"float32x{n}", w[block, step, T.Ramp(row, 1, n)])
        return total + _broadcast(x[token, step], n) * rows


class _Bfloat16:
    """float32 sums of pairs of bfloat16: by an instruction for them, or else widened."""

    grouped = False
    streams = 4

    def __init__(self, weight: TensorType, lanes: int, registers: int, dot: str | None) -> None:
        self.weight, self.lanes = weight, lanes
        self.tokens, self.vectors = _tile(lanes, registers)
        self.imports = "" if dot is None else dot_bfloat16_ir(dot, lanes)

    def steps(self) -> int:
        return self.weight.static(1)

    def tile(self, tokens: int) -> Callable[..., None] | None:
        return None

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        n = self.lanes
        pair = T.reinterpret("uint32", x[token, T.Ramp(2 * step, 1, 2)])
        rows = T.reinterpret(f"uint32x{n}", w[block, step, T.Ramp(2 * row, 1, 2 * n)])
        if self.imports:
            return T.call_extern(f"float32x{n}", DOT_BFLOAT16, total, _broadcast(pair, n), rows)
        upper = T.uint32(0xFFFF0000)
        first = T.reinterpret(FLOAT32, pair << T.uint32(16))
        second = T.reinterpret(FLOAT32, pair & upper)
        total = total + _broadcast(first, n) * T.reinterpret(
            f"float32x{n}", rows << _broadcast(T.uint32(16), n)
        )
        return total + _broadcast(second, n) * T.reinterpret(
            f"float32x{n}", rows & _broadcast(upper, n)
        )


class _Grouped:
    """What every arithmetic on records of a quantized weight shares."""

    grouped = True
    imports = ""
    streams = 2

    def __init__(self, weight: TensorType, lanes: int) -> None:
        self.weight, self.lanes = weight, lanes
        self.bits = packed_bits(weight)
        self.scale_dtype = packed_scale_dtype(weight)

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
        if self.scale_dtype == "float32":
            return T.reinterpret(f"float32x{n}", w[block, step, T.Ramp(first + row, 1, n)])
        words = w[block, step, T.Ramp(first + row // 2, 1, n // 2)]
        return T.Cast(f"float32x{n}", T.reinterpret(f"float16x{n}", words))

    def constant(self, value: int) -> Any:
        return _broadcast(T.uint32(value), self.lanes)


class _Unpacked(_Grouped):
    """float32 sums of a quantized weight, whose values become float32 as they are read."""

    imports = ORDER_IR
    tokens, vectors = 4, 2

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        n = self.lanes
        group = None
        for j in range(self.bits):
            word = self.word(w, block, step, row, j)
            for i in range(GROUP_SIZE // self.bits):
                value = self._value(word, T.uint32(i))
                k = step * GROUP_SIZE + j * (GROUP_SIZE // self.bits) + i
                product = _broadcast(x[token, k], n) * value
                group = product if group is None else group + product
        return total + group * self.scale(w, block, step, row)

    def _value(self, word: Any, i: Any) -> Any:
        """Value i (uint32) of each word, float32 x lanes."""
        n, signed = self.lanes, f"int32x{self.lanes}"
        if self.bits == 8:
            up = T.reinterpret(signed, word << _broadcast(T.uint32(24) - T.uint32(8) * i, n))
            return T.Cast(f"float32x{n}", up >> _broadcast(T.int32(24), n))
        shift = T.uint32(8) * (i & T.uint32(3)) + (i & T.uint32(4))
        low = T.reinterpret(signed, word >> _broadcast(shift, n) & self.constant(15))
        return T.Cast(f"float32x{n}", low - _broadcast(T.int32(OFFSET_4BIT), n))

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """Each value of a few vectors of rows becomes float32 once, for all tokens."""
        n, each = self.lanes, GROUP_SIZE // self.bits
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
                                sums[T.Ramp((v * tokens + t) * n, 1, n)] = (
                                    sums[T.Ramp((v * tokens + t) * n, 1, n)]
                                    + T.Broadcast(
                                        x[T.min(first + t, last), step * GROUP_SIZE + j * each + i],
                                        n,
                                    )
                                    * value[T.Ramp(v * n, 1, n)]
                                )
                for v in T.unroll(side):
                    for t in T.unroll(tokens):
                        total[T.Ramp(at + t * ROWS + (side * part + v) * n, 1, n)] = total[
                            T.Ramp(at + t * ROWS + (side * part + v) * n, 1, n)
                        ] + sums[T.Ramp((v * tokens + t) * n, 1, n)] * self.scale(
                            w, block, step, (side * part + v) * n
                        )

        chosen: Callable[..., None] = add_group
        return chosen


class _Bytes(_Grouped, abc.ABC):
    """Products of bytes, summed as integers over a group and then scaled."""

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        whole = self.integers(x, token, w, block, step, row)
        return self.scaled(total, whole, x, token, w, block, step, row)

    def scaled(
        self, total: Any, whole: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any
    ) -> Any:
        """`total` and a group's exact sums by the scales of both sides."""
        n = self.lanes
        scale = _broadcast(T.reinterpret("float32", x[token, step, SCALE]), n)
        return total + T.Cast(f"float32x{n}", whole) * (self.scale(w, block, step, row) * scale)

    @abc.abstractmethod
    def integers(self, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        """The exact sums of a group, int32 x lanes."""

    def start(self, x: Any, token: Any, step: Any, offset: int) -> Any:
        """What makes up for weights that are stored with an offset, int32 x lanes."""
        total = T.reinterpret("int32", x[token, step, SUM])
        return _broadcast(total * T.int32(-offset), self.lanes)

    def inputs(self, x: Any, token: Any, step: Any, j: int) -> Any:
        """Four bytes of x for every lane."""
        return _broadcast(x[token, step, j], self.lanes)

    def half(self, word: Any, i: Any) -> Any:
        """The bytes in the low (i = 0) or the high (i = 1) halves of 4-bit words."""
        shift = _broadcast(T.uint32(4) * i, self.lanes)
        return word >> shift & self.constant(0x0F0F0F0F)

    def halves(self, word: Any) -> tuple[Any, Any]:
        """The bytes in both halves of 4-bit words."""
        return self.half(word, T.uint32(0)), self.half(word, T.uint32(1))


class _Avx2(_Bytes):
    """`vpmaddubsw` gives sums of two products as int16: 30480 at most for a group of 4 bits.

    Of 8 bits, two products of signed bytes fit, where the sign moves from one to the other.
    """

    imports = ORDER_IR + KEEP_IR
    vectors = 4

    def __init__(self, weight: TensorType) -> None:
        super().__init__(weight, 8)
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


class _Dot(_Bytes):
    """Adds four products of bytes to an int32: `vpdpbusd`, of unsigned weights, and `sdot`."""

    tokens = 4

    def __init__(self, weight: TensorType, lanes: int, name: str, *, unsigned: bool) -> None:
        super().__init__(weight, lanes)
        self.vectors = ROWS // lanes
        self._name = name
        self._unsigned = unsigned

    def integers(self, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        offset = 128 if self._unsigned else 0
        total = self.start(x, token, step, OFFSET_4BIT if self.bits == 4 else offset)
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


def dot_bytes(name: str, lanes: int, total: Any, weights: Any, given: Any) -> Any:
    """`total` (int32 x lanes) and four products of bytes in each lane, by an instruction."""
    kind = f"int8x{4 * lanes}"
    return T.call_llvm_pure_intrin(
        f"int32x{lanes}", name, total, T.reinterpret(kind, weights), T.reinterpret(kind, given)
    )
