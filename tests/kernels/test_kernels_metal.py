"""Products on Metal's matrix units: their generated source, run by a stand-in on this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from compiling import Array, kernel, poisoned, specs, told
from support import metal_emulation
from tvm import IRModule
from tvm.s_tir import dlight

from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.linear import linear, reference
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        metal_emulation.missing() is not None, reason=metal_emulation.missing() or ""
    ),
]

# Two tiles of rows and of W each way, none of them full; a long sum, which float16 would lose.
ROWS, OUTER, INNER = 37, 72, 512


@pytest.fixture(scope="module")
def device(shared: Path) -> metal_emulation.Device:
    return metal_emulation.install(shared)


def product(stored: Stored, out_type: str, path: Path) -> Any:
    """x [m, INNER] float16 times a weight that lies so, with the schedule that a build gives it."""
    build, target = told(linear, stored), resolve("metal -host=llvm").target
    args = [("m", INNER, "float16"), *specs(stored, OUTER, INNER)]
    case = (build, args, [("m", OUTER, out_type)])
    mod = IRModule({"product": kernel(case, target, "product")})
    with target:
        mod = dlight.ApplyDefaultSchedule(*schedule_gpu.rules())(mod)
    tvm.compile(mod, target=target).export_library(str(path))
    return tvm.runtime.load_module(str(path))["product"]


def call(function: Any, out_type: str, *arrays: Array) -> Array:
    on = tvm.device("metal", 0)
    y = tvm.runtime.tensor(poisoned((ROWS, OUTER), out_type), on)
    function(*(tvm.runtime.tensor(array, on) for array in arrays), y)
    found: Array = y.numpy()
    return found


@pytest.mark.parametrize(
    ("bits", "out_type"), [(16, "float16"), (8, "float16"), (4, "float16"), (4, "float32")]
)
def test_products_on_matrix_units(
    device: metal_emulation.Device, bits: int, out_type: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(bits)
    x = rng.standard_normal((ROWS, INNER)).astype(np.float16)
    weight: Array = rng.standard_normal((OUTER, INNER)).astype(np.float16)
    how = Stored.symmetric(bits, "float16", group=32) if bits < 16 else Stored(0, "float16")
    tensors = quantize(weight.astype(np.float32), how)
    # The kernel rounds what it unpacks to the type of x.
    weight = dequantize(tensors, how).astype(np.float16)
    device.sources.clear()
    y = call(product(how, out_type, tmp_path / "product.so"), out_type, x, *tensors)
    (source,) = device.sources.values()
    assert "simdgroup_multiply_accumulate" in source
    expected = reference(x, weight)
    # The error of a float32 sum (of a float16 one 0.5), and the last rounding.
    error = np.abs(y - expected)
    assert error.max() < 2e-4 + (2**-11 * np.abs(expected).max() if out_type == "float16" else 0)


FAULTS = {
    # Before the threads share what they have read, and before others read what they have stored.
    "a missing barrier": (r"(?<=\n)    threadgroup_barrier\(.*\);\n", ""),
    "another operand": (r"(simdgroup_load\(\w+\[)ax0_0\b", r"\g<1>0"),
    "an array that is too small": (r"(threadgroup half \w+\[)2048\]", r"\g<1>2040]"),
    "a row beyond the result": (r"< (arg\.\w+\) && .*\{\n +\*\(device)", r"<= \1"),
    "a barrier that not all reach": (
        r"(?<=\n)(    threadgroup_barrier\(.*\);)\n",
        r"    if (threadIdx.y) {\1}\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    device: metal_emulation.Device, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    x, weight = (rng.standard_normal((rows, INNER)).astype(np.float16) for rows in (ROWS, OUTER))
    monkeypatch.setattr(device, "fault", FAULTS[fault])
    function = product(Stored(0, "float16"), "float32", tmp_path / "product.so")
    try:
        y = call(function, "float32", x, weight)
    except Exception as error:
        assert "beyond its end" in str(error) or "different barriers" in str(error)
    else:
        assert not np.abs(y - reference(x, weight)).max() < 2e-4
