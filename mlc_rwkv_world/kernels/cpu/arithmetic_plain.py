"""Products with plain weights on a CPU, in float32: a step is one value, or a pair of bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.llvm_functions import DOT_BFLOAT16, dot_bfloat16_ir
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.storage.stored import ROWS


def _tile(lanes: int, registers: int) -> tuple[int, int]:
    """Rows of x and vectors of W whose sums fill the registers, with room for operands."""
    vectors = min(ROWS // lanes, 2 if registers == 16 else 4)
    return (6 if vectors <= 4 else 3), vectors


class Plain:
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
        return T.fma(T.Broadcast(x[token, step], n), rows, total)


class Bfloat16(Plain):
    """float32 sums of pairs of bfloat16: by an instruction for them, or else widened."""

    def __init__(self, weight: TensorType, lanes: int, registers: int, dot: str | None) -> None:
        super().__init__(weight, lanes, registers)
        self.imports = "" if dot is None else dot_bfloat16_ir(dot, lanes)

    def add(self, total: Any, x: Any, token: Any, w: Any, block: Any, step: Any, row: Any) -> Any:
        n = self.lanes
        pair = T.reinterpret("uint32", x[token, T.Ramp(2 * step, 1, 2)])
        rows = T.reinterpret(f"uint32x{n}", w[block, step, T.Ramp(2 * row, 1, 2 * n)])
        if self.imports:
            return T.call_extern(f"float32x{n}", DOT_BFLOAT16, total, T.Broadcast(pair, n), rows)
        upper = T.uint32(0xFFFF0000)
        first = T.reinterpret("float32", pair << T.uint32(16))
        second = T.reinterpret("float32", pair & upper)
        even = T.reinterpret(f"float32x{n}", rows << T.Broadcast(T.uint32(16), n))
        odd = T.reinterpret(f"float32x{n}", rows & T.Broadcast(upper, n))
        return T.fma(T.Broadcast(second, n), odd, T.fma(T.Broadcast(first, n), even, total))
