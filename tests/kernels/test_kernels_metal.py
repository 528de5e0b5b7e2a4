"""Products on Metal's matrix units: their generated source, run by a header on this CPU."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import tvm
from compiling import Array, kernel, specs, told
from support.metal_emulation import MetalKernel
from tvm import IRModule
from tvm.s_tir import dlight

from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.linear import linear, reference
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs g++ for x86-64"
)

# Two tiles of rows and of W each way, none of them full; a long sum, which float16 would lose.
ROWS, OUTER, INNER = 37, 72, 512
TILE_ROWS, TILE_OUTER = 32, 64


def metal_source(stored: Stored, out_type: str) -> str:
    build, target = told(linear, stored), resolve("metal").target
    args = [("m", INNER, "float16"), *specs(stored, OUTER, INNER)]
    case = (build, args, [("m", OUTER, out_type)])
    mod = IRModule({"product": kernel(case, target, "product")})
    with target:
        mod = dlight.ApplyDefaultSchedule(*schedule_gpu.rules())(mod)
    built = tvm.compile(mod, target=target)
    (shader,) = getattr(built, "mod", built).imports
    return str(shader.inspect_source())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "out_type"), [(16, "float16"), (8, "float16"), (4, "float16"), (4, "float32")]
)
def test_products_on_matrix_units(bits: int, out_type: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float16)
    weight: Array = rng.standard_normal((OUTER, INNER)).astype(np.float16)
    how = Stored.symmetric(bits, "float16", group=32) if bits < 16 else Stored(0, "float16")
    tensors = quantize(weight.astype(np.float32), how)
    # The kernel rounds what it unpacks to the type of x.
    weight = dequantize(tensors, how).astype(np.float16)
    stored = dict(zip(("weight_ptr", "weight_ptr_1"), tensors, strict=False))
    source = metal_source(how, out_type)
    assert "simdgroup_multiply_accumulate" in source
    name = "matmul_ptr" if out_type == "float32" else "rounded_ptr"
    y = np.full((ROWS + 1, OUTER), np.nan, out_type)
    grid = (-(-ROWS // TILE_ROWS), -(-OUTER // TILE_OUTER), 1)
    MetalKernel(source, tmp_path)({"x_ptr": x, name: y, **stored}, [ROWS], grid, (32, 4, 1))
    expected = reference(x, weight)
    assert np.isnan(y[ROWS]).all()
    # The error of a float32 sum (of a float16 one 0.5), and the last rounding.
    error = np.abs(y[:ROWS] - expected)
    assert error.max() < 2e-4 + (2**-11 * np.abs(expected).max() if out_type == "float16" else 0)
