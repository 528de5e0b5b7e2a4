"""The emulated GPU's instructions by themselves, laid out here by PTX's tables, against float64.

"Parallel Thread Execution ISA", chapters "Matrix Fragments for mma.m16n8k16 with floating point
type", "ldmatrix" and "cp.async".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compiling import Array, Case, error_ratio
from support import cuda_emulation
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.intrinsics import (
    copy_async,
    copy_commit,
    copy_wait,
    mma,
    sync_warp,
    unpack,
)
from mlc_rwkv_world.kernels.signature import Signature

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

LANES = 32
# No kernel of ours loads its operands so; those of others may.
_LDMATRIX = """
__device__ __forceinline__ void test_ldmatrix(unsigned* to, const void* row) {
  unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared));
}
"""


def _product(_: Signature) -> tirx.PrimFunc:
    """Registers of A, B and C of each lane -> those of A B + C."""

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((LANES, 4), "uint32"),
        b: T.Buffer((LANES, 2), "uint32"),
        c: T.Buffer((LANES, 4), "float32"),
        d: T.Buffer((LANES, 4), "float32"),
    ) -> None:
        for lane in T.thread_binding(LANES, thread="threadIdx.x"):
            left = T.alloc_buffer((4,), "uint32", scope="local")
            right = T.alloc_buffer((2,), "uint32", scope="local")
            sums = T.alloc_buffer((4,), "float32", scope="local")
            for i in T.unroll(4):
                left[i] = a[lane, i]
                sums[i] = c[lane, i]
            for i in T.unroll(2):
                right[i] = b[lane, i]
            mma(T.address_of(sums[0]), T.address_of(left[0]), T.address_of(right[0]))
            for i in T.unroll(4):
                d[lane, i] = sums[i]

    return kernel


def _loaded(_: Signature) -> tirx.PrimFunc:
    """Rows [32, 8] of 16 bits, copied to shared memory, to the registers that ldmatrix gives."""

    @T.prim_func(s_tir=True)
    def kernel(rows: T.Buffer((LANES, 4), "uint32"), y: T.Buffer((LANES, 4), "uint32")) -> None:
        for lane in T.thread_binding(LANES, thread="threadIdx.x"):
            shared = T.alloc_buffer((LANES, 4), "uint32", scope="shared")
            mine = T.alloc_buffer((4,), "uint32", scope="local")
            # An array has what is seen to be written, and an address is not seen.
            for i in T.unroll(4):
                mine[i] = T.uint32(0)
                shared[lane, i] = T.uint32(0)
            copy_async(T.address_of(shared[lane, 0]), T.address_of(rows[lane, 0]), 16)
            copy_commit()
            copy_wait(0)
            sync_warp()
            T.evaluate(
                T.cuda.func_call(
                    "test_ldmatrix",
                    T.address_of(mine[0]),
                    T.address_of(shared[lane, 0]),
                    source_code=_LDMATRIX,
                )
            )
            for i in T.unroll(4):
                y[lane, i] = mine[i]

    return kernel


def _copied(_: Signature) -> tirx.PrimFunc:
    """Of each lane's 16 bytes the first `count[lane]`, in two groups, and zeros after them."""

    @T.prim_func(s_tir=True)
    def kernel(
        rows: T.Buffer((LANES, 4), "uint32"),
        count: T.Buffer((LANES,), "int32"),
        y: T.Buffer((2, LANES, 4), "uint32"),
    ) -> None:
        for lane in T.thread_binding(LANES, thread="threadIdx.x"):
            shared = T.alloc_buffer((2, LANES, 4), "uint32", scope="shared")
            for group in T.unroll(2):
                copy_async(
                    T.address_of(shared[group, lane, 0]), T.address_of(rows[lane, 0]), count[lane]
                )
                copy_commit()
            copy_wait(1)
            for i in T.unroll(4):
                y[0, lane, i] = shared[0, lane, i]
            copy_wait(0)
            for i in T.unroll(4):
                y[1, lane, i] = shared[1, lane, i]

    return kernel


def _unpacked(bits: int) -> Callable[[Signature], tirx.PrimFunc]:
    """8 integers of each lane and their scale, to pairs of float16."""
    words = bits // 4

    def build(_: Signature) -> tirx.PrimFunc:
        @T.prim_func(s_tir=True)
        def kernel(
            packed: T.Buffer((LANES, words), "uint32"),
            scale: T.Buffer((LANES,), "float16"),
            y: T.Buffer((LANES, 4), "uint32"),
        ) -> None:
            for lane in T.thread_binding(LANES, thread="threadIdx.x"):
                raw = T.alloc_buffer((words,), "uint32", scope="local")
                out = T.alloc_buffer((4,), "uint32", scope="local")
                for i in T.unroll(4):
                    out[i] = T.uint32(0)
                for i in T.unroll(words):
                    raw[i] = packed[lane, i]
                unpack(T.address_of(out[0]), T.address_of(raw[0]), scale[lane], bits)
                for i in T.unroll(4):
                    y[lane, i] = out[i]

        return kernel

    return build


def build_unpacked_4(sig: Signature) -> tirx.PrimFunc:
    return _unpacked(4)(sig)


def build_unpacked_8(sig: Signature) -> tirx.PrimFunc:
    return _unpacked(8)(sig)


U32 = "uint32"
FOUR = (LANES, 4, U32)
CASES: dict[str, Case] = {
    "product": (_product, [FOUR, (LANES, 2, U32), (LANES, 4, "float32")], [(LANES, 4, "float32")]),
    "loaded": (_loaded, [FOUR], [FOUR]),
    "copied": (_copied, [FOUR, (LANES, "int32")], [(2, LANES, 4, U32)]),
    "unpack4": (build_unpacked_4, [(LANES, 1, U32), (LANES, "float16")], [FOUR]),
    "unpack8": (build_unpacked_8, [(LANES, 2, U32), (LANES, "float16")], [FOUR]),
}


def _pairs(matrix: Array, places: list[tuple[int, int]]) -> Array:
    """Elements at (row, column), two of 16 bits to a word."""
    return np.array([matrix[at] for at in places], "float16").view(U32)


RNG = np.random.default_rng(11)
A, B = RNG.standard_normal((16, 16)).astype("f2"), RNG.standard_normal((16, 8)).astype("f2")
C = RNG.standard_normal((16, 8)).astype("f4")
ROWS = RNG.integers(0, 1 << 32, (LANES, 4), np.uint32)
COUNTS = (np.arange(LANES) % 5 * 4).astype("int32")
INTEGERS = {bits: RNG.integers(0, 1 << bits, (LANES, 8), np.uint32) for bits in (4, 8)}
SCALES = RNG.uniform(0.01, 0.1, LANES).astype("f2")


def _of_c(lane: int, i: int) -> tuple[int, int]:
    group, within = divmod(lane, 4)
    return group + (8 if i >= 2 else 0), within * 2 + i % 2


def _registers() -> tuple[Array, Array, Array]:
    """Those of A, B and C, as the tables say."""
    a, b, c = [], [], []
    for lane in range(LANES):
        group, within = divmod(lane, 4)
        a.append(
            _pairs(
                A,
                [
                    (
                        group if i < 2 or 4 <= i < 6 else group + 8,
                        within * 2 + i % 2 + (8 if i >= 4 else 0),
                    )
                    for i in range(8)
                ],
            )
        )
        rows = [(within * 2 + i % 2 + (8 if i >= 2 else 0), group) for i in range(4)]
        b.append(_pairs(B, rows))
        c.append([C[_of_c(lane, i)] for i in range(4)])
    return np.array(a), np.array(b), np.array(c, "f4")


def _words(bits: int) -> Array:
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = INTEGERS[bits].reshape(LANES, -1, 32 // bits) << shifts
    return np.asarray(np.bitwise_or.reduce(fields, axis=2))


@pytest.fixture(scope="module")
def answers() -> dict[str, Array]:
    calls: list[tuple[str, Any]] = [
        ("product", ([*_registers()], [((LANES, 4), "float32")])),
        ("loaded", ([ROWS], [((LANES, 4), U32)])),
        ("copied", ([ROWS, COUNTS], [((2, LANES, 4), U32)])),
        ("unpack4", ([_words(4), SCALES], [((LANES, 4), U32)])),
        ("unpack8", ([_words(8), SCALES], [((LANES, 4), U32)])),
    ]
    found = cuda_emulation.run("emulated:compute", CASES, calls)
    return {name: y for (name, _), (y, *_) in zip(calls, found, strict=True)}


def test_mma(answers: dict[str, Array]) -> None:
    exact = A.astype(np.float64) @ B + C
    wanted = [[exact[_of_c(lane, i)] for i in range(4)] for lane in range(LANES)]
    assert error_ratio(answers["product"], np.array(wanted)) < 2e-7


def test_ldmatrix(answers: dict[str, Array]) -> None:
    # Row lane / 4 of matrix m is lane 8 m + lane / 4's, and a word of it is two elements.
    for lane in range(LANES):
        wanted = [ROWS[8 * m + lane // 4, lane % 4] for m in range(4)]
        np.testing.assert_array_equal(answers["loaded"][lane], wanted)


def test_copies(answers: dict[str, Array]) -> None:
    kept = np.arange(4) < COUNTS[:, None] // 4
    for group in range(2):
        np.testing.assert_array_equal(answers["copied"][group], np.where(kept, ROWS, 0))


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking(answers: dict[str, Array], bits: int) -> None:
    exact = (INTEGERS[bits].astype(np.float64) - (1 << (bits - 1)) + 1) * SCALES[:, None]
    found = answers[f"unpack{bits}"].view("f2").astype(np.float64)
    # The text rounds the scaled value once, to float16.
    np.testing.assert_array_equal(found, exact.astype("f2"))
