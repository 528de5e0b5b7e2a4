"""Products with weights in every way of storing them, those that no kernel suits among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from compiling import Case, Kernels, error_ratio, specs, told

from mlc_rwkv_world.kernels.linear import linear, reference
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

# float32 sums of up to 160 products; a float16 result adds its own rounding.
RATIO = {"float32": 3e-7, "float16": 3.5e-4}
# (N, K): none of the sizes is a multiple of what the kernels run at a time.
PLAIN = [(33, 50), (7, 19), (48, 160)]
GROUPED = [(33, 96), (5, 32), (48, 160)]
LENGTHS = [1, 2, 3, 4, 5, 16, 33]
# How a weight is stored, and what the product computes in. The last four have the general kernel.
STORED = {
    "float32": (Stored(0, "float32"), "float32"),
    "float16": (Stored(0, "float16"), "float32"),
    "all_float16": (Stored(0, "float16"), "float16"),
    "q4f32": (Stored.symmetric(4, "float32", group=32), "float32"),
    "q4f16": (Stored.symmetric(4, "float16", group=32), "float32"),
    "q8f16": (Stored.symmetric(8, "float16", group=32), "float32"),
    "q4_of_48": (Stored.symmetric(4, "float16", group=48), "float32"),
    "q8_by_row": (Stored.symmetric(8, "float32", group=0), "float32"),
    "q2_with_offset": (Stored(2, "float16", group=32, offset=2), "float32"),
    "q8_by_row_in_float16": (Stored.symmetric(8, "float16", group=0), "float16"),
}


def _case(rows: int | str, n: int, k: int, name: str) -> Case:
    stored, computed = STORED[name]
    weight = specs(stored, n, k)
    return told(linear, stored), [(rows, k, computed), *weight], [(rows, n, computed)]


# Every pair of sizes once, and every way of storing with the first pair.
PRODUCTS = {
    f"{kind}_{name}_{n}_{k}": (rows, n, k, name)
    for kind, rows in (("row", 1), ("rows", "m"))
    for name, (stored, _) in STORED.items()
    for sizes in [GROUPED if stored.bits else PLAIN]
    for n, k in sizes
    if (n, k) == sizes[0] or name == "q4f16" or (name, n) == ("float16", 7)
}
CASES = {name: _case(*product) for name, product in PRODUCTS.items()}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(kernels: Kernels, name: str) -> None:
    count, n, k, how = PRODUCTS[name]
    stored, computed = STORED[how]
    rng = np.random.default_rng(len(name))
    tensors = quantize(rng.standard_normal((n, k), np.float32), stored)
    dense = dequantize(tensors, stored)
    for rows in [1] if count == 1 else LENGTHS:
        x = rng.standard_normal((rows, k), np.float32).astype(computed)
        (y,) = kernels(name, x, *tensors, outs=[((rows, n), computed)])
        assert error_ratio(y, reference(x, dense)) < RATIO[computed], f"{rows} rows"


def test_no_row_of_a_batch_depends_on_another(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    stored, _ = STORED["q4f16"]
    weight = quantize(rng.standard_normal((33, 96), np.float32), stored)
    x = rng.standard_normal((9, 96), np.float32)
    x[4] = np.nan
    (y,) = kernels("rows_q4f16_33_96", x, *weight, outs=[((9, 33), "float32")])
    others = np.delete(np.arange(9), 4)
    (alone,) = kernels("rows_q4f16_33_96", x[others], *weight, outs=[((8, 33), "float32")])
    assert np.isnan(y[4]).all()
    np.testing.assert_array_equal(y[others], alone)
