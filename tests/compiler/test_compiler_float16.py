"""Float16 on a CPU: each operation's result is rounded, and products are summed in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from support.modules import small_config
from tvm import IRModule, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.compiler import library, pipeline
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.layers import Linear
from mlc_rwkv_world.storage import Stored

pytestmark = pytest.mark.slow

WIDTH = 64
ROWS = 40


class Chains(nn.Module):  # type: ignore[misc]
    """What fusion and LLVM could compute without rounding between: all fused into one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(WIDTH, WIDTH, Stored(0, "float16"))

    def products(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x * y + z

    def sums(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + y - z

    def squares(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return op.square(op.relu(x)) * y - z

    def casts(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        wide = op.astype(x, "float32") * op.astype(y, "float32")
        return op.astype(op.astype(op.astype(wide, "float16"), "float32") - wide, "float16") + z

    def gates(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return op.sigmoid(x) * y + z

    def linears(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.linear(x, out_dtype="float16") + y + z


NAMES = ["products", "sums", "squares", "casts", "gates", "linears"]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def stepwise(name: str, arrays: Arrays, weight: np.ndarray) -> np.ndarray:
    """The same chain with NumPy, whose float16 operations each round."""
    x, y, z = arrays
    one, zero = np.float16(1), np.float16(0)
    with np.errstate(over="ignore"):
        if name == "products":
            return x * y + z
        if name == "sums":
            return x + y - z
        if name == "squares":
            return np.asarray(np.square(np.maximum(x, zero)) * y - z)
        if name == "casts":
            wide = x.astype(np.float32) * y.astype(np.float32)
            return (wide.astype(np.float16).astype(np.float32) - wide).astype(np.float16) + z
        if name == "gates":
            return np.asarray(one / (one + np.exp(-x)) * y + z)
        product = (x.astype(np.float64) @ weight.astype(np.float64).T).astype(np.float16)
        return np.asarray(product + y + z)


@pytest.fixture(scope="module")
def lowered() -> IRModule:
    inputs = {key: nn.spec.Tensor(["seq_len", WIDTH], "float16") for key in "xyz"}
    spec = {name: {**inputs, "$": {"param_mode": "packed"}} for name in NAMES}
    mod, _ = Chains().export_tvm(spec)
    return pipeline.run(
        mod, resolve("llvm").target, small_config(prefill_chunk_size=ROWS), {}, None
    )


@pytest.fixture(scope="module")
def machine(lowered: IRModule, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("chains") / "chains.so"
    library.write(lowered, resolve("llvm"), Path(path))
    return tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return (np.random.default_rng(1).standard_normal((WIDTH, WIDTH)) / 8).astype(np.float16)


@pytest.fixture(scope="module")
def run(machine: Any, weight: np.ndarray) -> Callable[[str, Arrays], np.ndarray]:
    def called(name: str, arrays: Arrays) -> np.ndarray:
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        return np.asarray(machine[name](*tensors, [tvm.runtime.tensor(weight)]).numpy())

    return called


def _random(rows: int, scale: float) -> Arrays:
    rng = np.random.default_rng(rows)
    x, y, z = (rng.standard_normal((rows, WIDTH)) * scale for _ in range(3))
    return x.astype(np.float16), y.astype(np.float16), z.astype(np.float16)


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("name", ["products", "sums", "squares", "casts"])
def test_every_operation_rounds(
    run: Callable[[str, Arrays], np.ndarray], weight: np.ndarray, name: str, scale: float
) -> None:
    arrays = _random(ROWS, scale)
    expected = stepwise(name, arrays, weight)
    np.testing.assert_array_equal(run(name, arrays), expected)
    # The inputs tell rounding from none: without it, many results are others.
    x, y, z = (array.astype(np.float64) for array in arrays)
    unrounded = {
        "products": x * y + z,
        "sums": x + y - z,
        "squares": np.square(np.maximum(x, 0)) * y - z,
        "casts": z,
    }[name]
    assert (unrounded.astype(np.float16) != expected).mean() > 0.05


def test_gates_and_products_round(
    run: Callable[[str, Arrays], np.ndarray], weight: np.ndarray
) -> None:
    """Exponentials and the order of sums may move a result by a step, now and then."""
    for name in ("gates", "linears"):
        arrays = _random(ROWS, 1)
        found, expected = run(name, arrays), stepwise(name, arrays, weight)
        assert (found == expected).mean() > 0.98
        np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)


def test_results_beyond_the_range_are_infinite(
    run: Callable[[str, Arrays], np.ndarray],
) -> None:
    """Although y takes them back: nothing between is kept wider than it says."""
    x = np.full((1, WIDTH), 300, np.float16)
    y = np.full((1, WIDTH), 2**-10, np.float16)
    z = np.zeros((1, WIDTH), np.float16)
    assert np.isposinf(run("squares", (x, y, z))).all()
    # 60000 + 60000 - 60000.
    large = np.full((1, WIDTH), 60000, np.float16)
    assert np.isposinf(run("sums", (large, large, large))).all()


def test_products_are_summed_in_float32(
    run: Callable[[str, Arrays], np.ndarray], weight: np.ndarray
) -> None:
    """Sums in float16 would be off by many of its steps of 8 to 32."""
    x = _random(3, 1)[0] * np.float16(1e4)
    zero = np.zeros_like(x)
    found = run("linears", (x, zero, zero))
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(found, exact, rtol=2**-11 * 1.01, atol=0.1)


def test_fused_kernels_keep_their_casts(lowered: IRModule) -> None:
    kernels = {
        gvar: func.script()
        for gvar, func in lowered.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    (casts,) = (text for text in kernels.values() if text.count('T.Cast("float16"') == 2)
    assert casts.count('T.Cast("float32"') >= 3
    # One kernel for each chain, and the product's own: fusion did happen.
    assert len([text for text in kernels.values() if "float16" in text]) == len(NAMES) + 1
