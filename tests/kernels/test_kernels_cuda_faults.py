"""Faults that are planted into CUDA kernels: the emulated GPU notices every one of them."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from compiling import Case, specs, told
from support import cuda_emulation
from support.cuda_emulation import Fault

from mlc_rwkv_world.kernels.cuda.norm_mix import norm_mix
from mlc_rwkv_world.kernels.linear import linear
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import quantize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

F32, F16 = "float32", "float16"
Q4 = Stored.symmetric(4, F16, group=32)
# A product of one row, one of several, in the tile for up to 64, and a step's normalization.
ONE, TILE, MIX = "one_kernel", "tile_kernel_1", "mix_kernel"
WIDTH = 96
CASES: dict[str, Case] = {
    "one": (told(linear, Q4), [(1, 3072, F16), *specs(Q4, 34, 3072)], [(1, 34, F32)]),
    "tile": (told(linear, Q4), [("rows", 512, F16), *specs(Q4, 40, 512)], [("rows", 40, F32)]),
    "mix": (
        partial(norm_mix, eps=1e-5, of_previous=False),
        [("b", WIDTH, F16), *[(WIDTH, F32)] * 4, ("s", 2, 5, WIDTH, F32), ("b", 2, "int32")],
        [("b", WIDTH, F32)] * 2,
    ),
}

RACE = "with no barrier between"
# What is planted, and what is said of it.
FAULTS: dict[str, tuple[Fault, str]] = {
    "a barrier is missing": (
        Fault(r"__syncthreads\(\);", "", MIX),
        f"shared memory that .*, {RACE}",
    ),
    "memory is used again before a barrier": (
        Fault(r"__syncthreads\(\);", "", MIX, occurrence=1),
        f"shared memory that .*, {RACE}",
    ),
    "a warp's barrier is missing": (
        Fault(r"rwkv_world_sync_warp\(\);", "", ONE),
        f"that a copy is still bringing|{RACE}",
    ),
    "copies are waited for too late": (
        Fault("wait_group 2", "wait_group 3"),
        "touches shared memory that a copy is still bringing",
    ),
    "four bytes beyond the end": (
        Fault(r"(y_a_ptr\[)(.*)\] =", r"\1\2 + (blockIdx.x == 2 && threadIdx.x == 95)] =", MIX),
        "writes 4 bytes of device memory, from 1152 of 1152",
    ),
    "four bytes in front of the begin": (
        Fault(r"(y_a_ptr\[)(.*)\] =", r"\1\2 - (blockIdx.x == 0 && threadIdx.x == 0)] =", MIX),
        "writes 4 bytes of device memory, from -4 of 1152",
    ),
    "four bytes beyond a shared array": (
        Fault(r">> 5\)\] =", ">> 5) + 1] =", MIX),
        "touches 4 bytes outside of its shared arrays",
    ),
    "an operand in the wrong register": (
        Fault("%4, %5, %6, %7", "%4, %6, %5, %7"),
        "^other values$",
    ),
    "an operand from the wrong lane": (
        Fault(r"total_ptr\[0\], 16, 32", "total_ptr[0], 8, 32", ONE),
        "^other values$",
    ),
    "a block depends on another": (
        Fault(
            r"last_ptr\[0\] = [^;]*;",
            "last_ptr[0] = y_a_ptr[(blockIdx.x + 1) % 3 * 96 + threadIdx.x];",
            MIX,
        ),
        f"device memory that .* of another block .*, {RACE}",
    ),
    "a row of a state is written twice": (
        Fault(r"(state_ptr\[\(+\(int64_t\)slots_ptr\[)[^\]]*\+ \(int64_t\)1\)\]", r"\g<1>1]", MIX),
        f"writes device memory that .* of another block wrote, {RACE}",
    ),
    "a copy from where none may begin": (
        Fault(r"\+ condval\)\]", "+ condval + 1)]", ONE),
        "an address that is no multiple of 16",
    ),
    "more shared memory than a block may have": (
        Fault(r"parts_ptr\[3\];", "parts_ptr[12289];", MIX),
        "more than 48 KB of static shared memory",
    ),
}
# Where an instruction's own text is changed, whose kernel is run.
OWNERS = {"wait_group 2": ONE, "%4, %5, %6, %7": TILE}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What was noticed of each fault."""
    rng = np.random.default_rng(3)

    def weight(n: int, k: int) -> list[Any]:
        return quantize(rng.standard_normal((n, k), np.float32), Q4)

    def rows(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(F16)

    vectors = list(rng.uniform(0, 1, (4, WIDTH)).astype(F32))
    pool = rng.normal(0, 1, (6, 2, 5, WIDTH)).astype(F32)
    slots = np.array([[0, 1], [2, 3], [4, 4]], np.int32)
    calls = {
        "one": ([rows(1, 3072), *weight(34, 3072)], [((1, 34), F32)]),
        "tile": ([rows(40, 512), *weight(40, 512)], [((40, 40), F32)]),
        "mix": ([rows(3, WIDTH), *vectors, pool, slots, 1, 2], [((3, WIDTH), F32)] * 2),
    }
    faults = [(fault, OWNERS.get(fault.pattern, fault.kernel)) for fault, _ in FAULTS.values()]
    found = cuda_emulation.run("emulated:planted", CASES, calls, faults)
    return dict(zip(FAULTS, found, strict=True))


@pytest.mark.parametrize("what", FAULTS)
def test_noticed(said: dict[str, str], what: str) -> None:
    assert re.search(FAULTS[what][1], said[what]), said[what]
