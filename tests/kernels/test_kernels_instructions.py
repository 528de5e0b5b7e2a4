"""Which instructions products become on CPUs that tests do not run on."""

from __future__ import annotations

import re
from functools import partial

import pytest
import tvm
from compiling import Case, kernel, specs, told
from tvm import IRModule
from tvm.target import Target

from mlc_rwkv_world.compiler.library import lowering
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu import product as product_cpu
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.exp import silu
from mlc_rwkv_world.kernels.cpu.packed_weight import packed
from mlc_rwkv_world.kernels.cpu.products import End, products
from mlc_rwkv_world.storage import Stored

BYTES = {
    "avx512-vnni": ("llvm -mcpu=cascadelake", r"vpdpbusd\s.*%zmm"),
    "avx-vnni": ("llvm -mcpu=alderlake", r"vpdpbusd\s.*%ymm"),
    "avx2": ("llvm -mcpu=haswell", r"vpmaddubsw\s.*%ymm"),
    "neon": ("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1", r"sdot\s+v\d+\.4s"),
}
NARROW = {
    "intel": ("llvm -mcpu=sapphirerapids", r"vdpbf16ps\s.*%zmm"),
    "amd": ("llvm -mcpu=znver4", r"vdpbf16ps\s.*%zmm"),
    "neon": ("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n2", r"bfdot\s+v\d+\.4s"),
}
N, K = 64, 96


def _assembly(text: str, stored: Stored, arithmetic: str, rows: int | str) -> str:
    """Of the product of `rows` inputs and such a weight."""
    target = resolve(text).target
    form = packed(stored, narrow=arithmetic == BFLOAT16)
    assert form is not None
    inputs = inputs_of(form, arithmetic)
    x = input_type(rows, K, inputs)
    build = told(product_cpu.linear_packed, form, inputs=inputs)
    return _of(target, (build, [(*x.shape, x.dtype), *specs(form, N, K)], [(rows, N, "float32")]))


def _of(target: Target, case: Case) -> str:
    with target, lowering(target):
        module = tvm.compile(IRModule({"product": kernel(case, target, "product")}), target).mod
    modules = [module, *module.imports]
    return "\n".join(m.inspect_source("s") for m in modules if m.kind == "llvm")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_multiplied_by(name: str, bits: int) -> None:
    text, instruction = BYTES[name]
    stored = Stored.symmetric(bits, "float16", group=32)
    assert len(re.findall(instruction, _assembly(text, stored, INT8, 1))) >= bits


@pytest.mark.parametrize("rows", [1, "m"])
@pytest.mark.parametrize("name", NARROW)
def test_pairs_of_bfloat16_are_multiplied_by(name: str, rows: int | str) -> None:
    text, instruction = NARROW[name]
    assembly = _assembly(text, Stored(0, "float16"), BFLOAT16, rows)
    assert len(re.findall(instruction, assembly)) >= 2
    assert "rwkv_world_dot" not in assembly


@pytest.mark.parametrize("rows", [1, "m"])
def test_products_that_are_alike_share_their_tile(rows: int | str) -> None:
    """However high their weights are, and whatever becomes of their sums."""
    text, instruction = BYTES["avx512-vnni"]
    target, form = resolve(text).target, packed(Stored.symmetric(4, "float16", group=32))
    assert form is not None
    x = input_type(rows, K, inputs_of(form, INT8))

    def count(heights: list[int]) -> int:
        ends = [End(), End(silu), End()][: len(heights)]
        forms = [form] * len(heights)
        build = told(partial(products, ends=ends), *forms, inputs=inputs_of(form, INT8))
        weights = [spec for height in heights for spec in specs(form, height, K)]
        given = [(*x.shape, x.dtype)] * len(heights)
        case = (build, [*given, *weights], [(rows, height, "float32") for height in heights])
        return len(re.findall(instruction, _of(target, case)))

    assert count([N, 2 * N, N]) == count([N]) > 0


def test_a_kernel_leaves_its_arguments_to_those_that_call_it() -> None:
    """Looking at each would be most of a library's code."""
    stored = Stored.symmetric(4, "float16", group=32)
    assert "Mismatched" not in _assembly(BYTES["avx2"][0], stored, INT8, 1)
