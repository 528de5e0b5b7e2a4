"""Products with a plain and with a group-quantized weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio

from mlc_rwkv_world.kernels.linear import linear, reference
from mlc_rwkv_world.quantization.group import dequantize, quantize

pytestmark = pytest.mark.slow

# float32 sums of up to 160 products; a float16 result adds its own rounding.
RATIO = {"float32": 3e-7, "float16": 3.5e-4}
# (N, K): none of the sizes is a multiple of what the kernels run at a time.
PLAIN = [(33, 50), (7, 19), (48, 160)]
GROUPED = [(33, 96), (5, 32), (48, 160)]
LENGTHS = [1, 2, 3, 4, 5, 16, 33]


def _plain(rows: int | str, n: int, k: int, stored: str, computed: str) -> Case:
    return linear, [(rows, k, computed), (n, k, stored)], [(rows, n, computed)]


def _grouped(rows: int | str, n: int, k: int, bits: int, scale: str) -> Case:
    words, scales = (n, k * bits // 32, "uint32"), (n, k // 32, scale)
    return linear, [(rows, k, "float32"), words, scales], [(rows, n, "float32")]


CASES: dict[str, Case] = {
    f"{kind}_{name}_{n}_{k}": case
    for kind, rows in (("row", 1), ("rows", "m"))
    for sizes, cases in (
        (
            PLAIN,
            {
                "float32": lambda *at: _plain(*at, "float32", "float32"),
                "float16": lambda *at: _plain(*at, "float16", "float32"),
                "all_float16": lambda *at: _plain(*at, "float16", "float16"),
            },
        ),
        (
            GROUPED,
            {
                "q4f32": lambda *at: _grouped(*at, 4, "float32"),
                "q4f16": lambda *at: _grouped(*at, 4, "float16"),
                "q8f16": lambda *at: _grouped(*at, 8, "float16"),
            },
        ),
    )
    for n, k in sizes
    for name, build in cases.items()
    # Every pair of sizes once, and every storage with the first pair.
    if (n, k) == sizes[0] or name == "q4f16" or (name, n) == ("float16", 7)
    for case in [build(rows, n, k)]
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES)


@pytest.mark.parametrize("name", CASES)
def test_product(kernels: Kernels, name: str) -> None:
    _, (x_type, *weight_types), (out,) = CASES[name]
    rng = np.random.default_rng(len(name))
    n, k = out[1], x_type[1]
    dense = rng.standard_normal((n, k), np.float32)
    if len(weight_types) == 1:
        stored: tuple[Array, ...] = (dense.astype(weight_types[0][2]),)
        dense = stored[0]
    else:
        bits = 32 * weight_types[0][1] // k
        stored = quantize(dense, bits, weight_types[1][2])
        dense = dequantize(*stored, bits)
    for rows in [1] if out[0] == 1 else LENGTHS:
        x = rng.standard_normal((rows, k), np.float32).astype(x_type[2])
        (y,) = kernels(name, x, *stored, outs=[((rows, n), out[2])])
        assert error_ratio(y, reference(x, dense)) < RATIO[out[2]], f"{rows} rows"


def test_no_row_of_a_batch_depends_on_another(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    words, scales = quantize(rng.standard_normal((33, 96), np.float32), 4, "float16")
    x = rng.standard_normal((9, 96), np.float32)
    x[4] = np.nan
    (y,) = kernels("rows_q4f16_33_96", x, words, scales, outs=[((9, 33), "float32")])
    others = np.delete(np.arange(9), 4)
    (alone,) = kernels("rows_q4f16_33_96", x[others], words, scales, outs=[((8, 33), "float32")])
    assert np.isnan(y[4]).all()
    np.testing.assert_array_equal(y[others], alone)
