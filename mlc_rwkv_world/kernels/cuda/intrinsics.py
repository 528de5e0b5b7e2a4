"""Instructions of NVIDIA's GPUs (sm_80 and later) that TIR has no portable name for.

Each is a small device function whose source TVM puts into the kernel's; tests replace them by
functions of the same name and meaning for a CPU. Pointers are what `T.address_of` gives.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_COPY_ASYNC = """
__device__ __forceinline__ void rwkv_world_copy_async(void* to, const void* from, int bytes) {
  unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared), "l"(from), "r"(bytes) : "memory");
}
"""
_COPY_COMMIT = """
__device__ __forceinline__ void rwkv_world_copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
"""
_COPY_WAIT = """
__device__ __forceinline__ void rwkv_world_copy_wait_%d() {
  asm volatile("cp.async.wait_group %d;" ::: "memory");
}
"""
_MMA = """
__device__ __forceinline__ void rwkv_world_mma(float* c, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
"""
# A byte goes into both halves of 1024 + value or 1024 + 16 * value, and comes out as value - 7.
_UNPACK_4 = """
__device__ __forceinline__ void rwkv_world_unpack_4(
    unsigned* out, const unsigned* word, half scale) {
  half2 scales = __half2half2(scale);
  half2 factor = __halves2half2(__float2half(1.0f), __float2half(0.0625f));
  half2 offset = __halves2half2(__float2half(-1031.0f), __float2half(-71.0f));
  #pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned both = __byte_perm(*word, 0, 0x4040u | i | (i << 8));
    both = (both & 0x00f0000fu) | 0x64006400u;
    half2 value = __hfma2(*reinterpret_cast<half2*>(&both), factor, offset);
    value = __hmul2(value, scales);
    out[i] = *reinterpret_cast<unsigned*>(&value);
  }
}
"""
_UNPACK_8 = """
__device__ __forceinline__ void rwkv_world_unpack_8(
    unsigned* out, const unsigned* words, half scale) {
  half2 scales = __half2half2(scale);
  half2 offset = __float2half2_rn(-1151.0f);
  #pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned both = __byte_perm(words[i / 2], 0x64646464u, i % 2 ? 0x4342 : 0x4140);
    half2 value = __hmul2(__hadd2(*reinterpret_cast<half2*>(&both), offset), scales);
    out[i] = *reinterpret_cast<unsigned*>(&value);
  }
}
"""
_EITHER = """
__device__ __forceinline__ const void* rwkv_world_either(
    bool first, const void* one, const void* other) {
  return first ? one : other;
}
"""
# Asked for by an address, so that the compiler sees no reason to move it before the copies' end.
_SYNC_WARP = """
__device__ __forceinline__ void rwkv_world_sync_warp() { __syncwarp(); }
"""


def copy_async(to: Any, source: Any, count: Any) -> Any:
    """Starts copying 16 bytes to shared memory; all after the first `count` become zeros."""
    return T.cuda.func_call("rwkv_world_copy_async", to, source, count, source_code=_COPY_ASYNC)


def copy_commit() -> Any:
    """Ends a group of this thread's copies."""
    return T.cuda.func_call("rwkv_world_copy_commit", source_code=_COPY_COMMIT)


def copy_wait(pending: int) -> Any:
    """Waits until no more than the latest `pending` groups of this thread are under way."""
    source = _COPY_WAIT % (pending, pending)
    return T.cuda.func_call(f"rwkv_world_copy_wait_{pending}", source_code=source)


def sync_warp() -> Any:
    """Lets the lanes of a warp see what each has written to shared memory."""
    return T.cuda.func_call("rwkv_world_sync_warp", source_code=_SYNC_WARP)


def either(first: Any, one: Any, other: Any) -> Any:
    """One of two addresses, of which the other is not looked at."""
    return T.cuda.func_call(
        "rwkv_world_either", first, one, other, source_code=_EITHER, return_type="handle"
    )


def mma(sums: Any, a: Any, b: Any) -> Any:
    """sums += A B: A [16, 16] float16 by rows, B [16, 8] by columns, float32 sums [16, 8].

    Registers of a lane as PTX lays them out for mma.m16n8k16: 4, 4 and 2 of 32 bits.
    """
    return T.cuda.func_call("rwkv_world_mma", sums, a, b, source_code=_MMA)


def unpack(out: Any, words: Any, scale: Any, bits: int) -> Any:
    """8 values of 4 (one word) or 8 bits (two words) to float16 pairs in 4 registers, scaled."""
    source = {4: _UNPACK_4, 8: _UNPACK_8}[bits]
    return T.cuda.func_call(f"rwkv_world_unpack_{bits}", out, words, scale, source_code=source)
