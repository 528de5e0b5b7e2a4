"""Products of bytes by the instructions that this CPU may lack, run on machines that have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compiling import Array, Case, error_ratio, specs, told
from machines import Bochs, Call, Machine, Native, Qemu
from tvm.target import Target

from mlc_rwkv_world.kernels.cpu import activation
from mlc_rwkv_world.kernels.cpu import product as product_cpu
from mlc_rwkv_world.kernels.cpu.arithmetic import INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.cpu.packed_weight import packed, reference_grouped
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

AVX2 = "llvm -mcpu=haswell"
NARROW_VNNI = "llvm -mcpu=alderlake"
VNNI = "llvm -mcpu=cascadelake"
NEON = "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1"
MACHINES: dict[str, tuple[type[Machine], str]] = {
    "avx2": (Native, AVX2),
    "avx-vnni": (Native, NARROW_VNNI),
    "avx512-vnni": (Native, VNNI),
    "avx512-vnni in Bochs": (Bochs, VNNI),
    "neon in qemu": (Qemu, NEON),
}
# As on the CPUs of test_kernels_packed.py.
RATIO = 5e-7
# Two blocks of rows and a part of one.
N, K = 70, 96
BITS = (4, 8)
# One row; and of several, tiles that are whole, and not.
LENGTHS = (1, 3, 8, 13)


def _stored(bits: int) -> Stored:
    return Stored.symmetric(bits, "float16", group=32)


def _case(bits: int, rows: int | str) -> Case:
    form = packed(_stored(bits))
    assert form is not None
    inputs = inputs_of(form, INT8)
    x = input_type(rows, K, inputs)
    args = [(*x.shape, x.dtype), *specs(form, N, K)]
    return told(product_cpu.linear_packed, form, inputs=inputs), args, [(rows, N, "float32")]


def _dense(bits: int) -> Array:
    """A weight whose first rows take every pair of products to its bound, of either sign."""
    dense = np.random.default_rng(bits).standard_normal((N, K), np.float32)
    dense[0], dense[1] = 1, -1
    return dense


def _input(rows: int) -> Array:
    x = np.random.default_rng(rows).standard_normal((rows, K), np.float32)
    x[0, :32] = 2
    return x


CASES = {f"bits{bits}_{rows}": _case(bits, rows) for bits in BITS for rows in (1, "m")}
SHAPES = [
    (bits, rows, kind)
    for bits in BITS
    for rows in LENGTHS
    for kind in (["1", "m"] if rows == 1 else ["m"])
]


def _calls(target: Target) -> list[Call]:
    weights = {}
    for bits in BITS:
        words, scales = quantize(_dense(bits), _stored(bits))
        weights[bits] = reference_grouped(words, scales, bits, lanes(target))
    return [
        (
            f"bits{bits}_{kind}",
            [activation.reference(_input(rows)), weights[bits]],
            ((rows, N), "float32"),
        )
        for bits, rows, kind in SHAPES
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Array]]:
    """`results(machine)`: of each of SHAPES; skips the test where there is no such machine."""
    known: dict[str, list[Array]] = {}

    def run(name: str) -> list[Array]:
        if name not in known:
            kind, text = MACHINES[name]
            machine = kind(text)
            folder: Path = tmp_path_factory.mktemp("machine")
            known[name] = machine(CASES, _calls(machine.target), folder)
        return known[name]

    return run


@pytest.mark.parametrize("name", MACHINES)
def test_products_on(name: str, results: Callable[[str], list[Array]]) -> None:
    for (bits, rows, kind), y in zip(SHAPES, results(name), strict=True):
        dense = dequantize(quantize(_dense(bits), _stored(bits)), _stored(bits)).astype(float)
        rounded = activation.dequantized(activation.reference(_input(rows))).astype(float)
        assert error_ratio(y, rounded @ dense.T) < RATIO, f"{bits} bits, {rows} rows, {kind}"


@pytest.mark.parametrize("name", [name for name in MACHINES if name != "avx2"])
def test_the_same_bits_as_with_avx2(name: str, results: Callable[[str], list[Array]]) -> None:
    """Sums of a group are exact, and every CPU adds groups in one order."""
    for shape, y, wanted in zip(SHAPES, results(name), results("avx2"), strict=True):
        np.testing.assert_array_equal(y.view(np.uint32), wanted.view(np.uint32), str(shape))
