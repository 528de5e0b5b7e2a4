"""Which instructions products become on CPUs that tests do not run on."""

from __future__ import annotations

import re

import pytest
import tvm
from compiling import signature
from tvm import IRModule

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels import product_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import INT8, input_type
from mlc_rwkv_world.kernels.packed_weight import packed_type
from mlc_rwkv_world.kernels.signature import TensorType

TARGETS = {
    "avx512-vnni": ("llvm -mcpu=cascadelake", r"vpdpbusd\s.*%zmm"),
    "avx-vnni": ("llvm -mcpu=alderlake", r"vpdpbusd\s.*%ymm"),
    "avx2": ("llvm -mcpu=haswell", r"vpmaddubsw\s.*%ymm"),
    "neon": ("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1", r"sdot\s+v\d+\.4s"),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", TARGETS)
def test_bytes_are_multiplied_by(name: str, bits: int) -> None:
    text, instruction = TARGETS[name]
    target = resolve(text).target
    stored = [TensorType((64, 96 * bits // 32), "uint32"), TensorType((64, 3), "float16")]
    weight = packed_type(stored, 96)
    x = input_type(1, weight, INT8)
    case = (
        product_cpu.linear,
        [(*x.shape, x.dtype), (*weight.shape, weight.dtype)],
        [(1, 64, "float32")],
    )
    kernel = product_cpu.linear(signature(case, target)).with_attr("global_symbol", "product")
    with target:
        module = tvm.compile(IRModule({"product": kernel}), target=target).mod
    modules = [module, *module.imports]
    assembly = "\n".join(m.inspect_source("s") for m in modules if m.kind == "llvm")
    assert len(re.findall(instruction, assembly)) >= bits
