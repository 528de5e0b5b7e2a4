"""What a CPU target can do, by LLVM's names of its instruction sets."""

from __future__ import annotations

from functools import cache

from tvm.target import Target, codegen


@cache
def features(target: Target) -> frozenset[str]:
    """The instruction sets that code for the target may use."""
    return frozenset(str(name) for name in codegen.llvm_get_cpu_features(target))


def lanes(target: Target) -> int:
    """How many 32-bit values one vector register holds."""
    have = features(target)
    return 16 if "avx512f" in have else 8 if "avx2" in have else 4


def vector_registers(target: Target) -> int:
    """How many vector registers there are."""
    have = features(target)
    return 32 if "avx512f" in have or "neon" in have else 16


def dots_of_bfloat16(target: Target) -> str | None:
    """LLVM's name of the instruction that sums products of bfloat16 in whole vectors, if any."""
    have = features(target)
    if "avx512bf16" in have:
        return f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes(target)}"
    return "llvm.aarch64.neon.bfdot.v4f32.v8bf16" if {"neon", "bf16"} <= have else None


def multiplies_bytes(target: Target) -> bool:
    """Whether bytes are multiplied and summed faster than float32."""
    have = features(target)
    return "avx2" in have or "dotprod" in have
