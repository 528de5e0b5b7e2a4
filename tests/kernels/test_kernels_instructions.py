"""Which instructions products become on CPUs that tests do not run on."""

from __future__ import annotations

import re

import pytest
import tvm
from compiling import signature
from tvm import IRModule

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels import product_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import BFLOAT16, INT8, input_type
from mlc_rwkv_world.kernels.packed_weight import packed_type
from mlc_rwkv_world.kernels.signature import TensorType

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
K = 96


def _assembly(text: str, stored: list[TensorType], arithmetic: str, rows: int | str) -> str:
    """Of the product of `rows` inputs and such a weight."""
    target = resolve(text).target
    weight = packed_type(stored, K, narrow=arithmetic == BFLOAT16)
    x = input_type(rows, weight, arithmetic)
    case = (
        product_cpu.linear,
        [(*x.shape, x.dtype), (*weight.shape, weight.dtype)],
        [(rows, stored[0].static(0), "float32")],
    )
    kernel = product_cpu.linear(signature(case, target)).with_attr("global_symbol", "product")
    with target:
        module = tvm.compile(IRModule({"product": kernel}), target=target).mod
    modules = [module, *module.imports]
    return "\n".join(m.inspect_source("s") for m in modules if m.kind == "llvm")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_multiplied_by(name: str, bits: int) -> None:
    text, instruction = BYTES[name]
    stored = [TensorType((64, K * bits // 32), "uint32"), TensorType((64, K // 32), "float16")]
    assert len(re.findall(instruction, _assembly(text, stored, INT8, 1))) >= bits


@pytest.mark.parametrize("rows", [1, "m"])
@pytest.mark.parametrize("name", NARROW)
def test_pairs_of_bfloat16_are_multiplied_by(name: str, rows: int | str) -> None:
    text, instruction = NARROW[name]
    assembly = _assembly(text, [TensorType((64, K), "float16")], BFLOAT16, rows)
    assert len(re.findall(instruction, assembly)) >= 2
    assert "rwkv_world_dot" not in assembly
