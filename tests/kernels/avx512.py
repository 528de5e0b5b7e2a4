"""Lets a CPU with AVX2 run the kernels of one with AVX-512: LLVM halves their vectors, and the
instructions that there are none of are spelled out."""

from __future__ import annotations

from typing import Any

import pytest
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu import arithmetic as arithmetic_cpu
from mlc_rwkv_world.kernels.cpu import arithmetic_bytes, arithmetic_plain
from mlc_rwkv_world.kernels.cpu import features as cpu_features
from mlc_rwkv_world.kernels.cpu.llvm_functions import DOT_BFLOAT16

FEATURES = frozenset({"avx2", "avx512f", "avx512vnni", "avx512bf16"})


def emulate(patch: pytest.MonkeyPatch) -> None:
    """Makes every target look like a CPU with AVX-512, VNNI and bfloat16."""
    for module in (cpu_features, arithmetic_cpu):
        patch.setattr(module, "features", lambda _target: FEATURES)
    patch.setattr(arithmetic_bytes, "dot_bytes", _dot_bytes)
    patch.setattr(arithmetic_plain, "dot_bfloat16_ir", _dot_bfloat16_ir)


def _dot_bytes(name: str, lanes: int, total: Any, unsigned: Any, signed: Any) -> Any:
    """What vpdpbusd adds, in int32."""
    assert name == f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    def all_lanes(value: int) -> Any:
        return T.Broadcast(T.uint32(value), lanes)

    kind = f"int32x{lanes}"
    for byte in range(4):
        u = T.reinterpret(kind, unsigned >> all_lanes(8 * byte) & all_lanes(255))
        s = T.reinterpret(kind, signed << all_lanes(24 - 8 * byte))
        total = total + u * (s >> T.Broadcast(T.int32(24), lanes))
    return total


def _dot_bfloat16_ir(name: str, lanes: int) -> str:
    """What vdpbf16ps adds, in float32: two products in each lane."""
    assert name == f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    total, words = f"<{lanes} x float>", f"<{lanes} x i32>"

    def splat(value: int) -> str:
        return "<" + ", ".join([f"i32 {value}"] * lanes) + ">"

    return f"""
define {total} @{DOT_BFLOAT16}({total} %sum, {words} %a, {words} %b) alwaysinline {{
  %a0 = shl {words} %a, {splat(16)}
  %b0 = shl {words} %b, {splat(16)}
  %a1 = and {words} %a, {splat(-65536)}
  %b1 = and {words} %b, {splat(-65536)}
  %x0 = bitcast {words} %a0 to {total}
  %y0 = bitcast {words} %b0 to {total}
  %x1 = bitcast {words} %a1 to {total}
  %y1 = bitcast {words} %b1 to {total}
  %p0 = fmul {total} %x0, %y0
  %p1 = fmul {total} %x1, %y1
  %s0 = fadd {total} %sum, %p0
  %s1 = fadd {total} %s0, %p1
  ret {total} %s1
}}
"""
