"""Packed weights, inputs as bytes or bfloat16, and their products, against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio, specs, told
from tvm.target import Target

from mlc_rwkv_world.kernels.cpu import activation, bfloat16
from mlc_rwkv_world.kernels.cpu import product as product_cpu
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.cpu.packed_weight import (
    pack,
    packed,
    reference_grouped,
    reference_narrow,
    reference_plain,
)
from mlc_rwkv_world.kernels.signature import Signature, stored_types
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

# float32 sums of up to 160 products; integers of a group are exact.
RATIO = 5e-7
# Rounding normally distributed inputs to 8 bits in groups of 32.
ROUNDING_RATIO = 6e-3
# Rounding both sides to bfloat16.
NARROW_RATIO = 3e-3
F32, F16, U32, U16 = "float32", "float16", "uint32", "uint16"
# (N, K): more than two blocks of rows and a part of one; less than one; whole ones; and enough
# that a task reads several streams.
SIZES = [(70, 96), (5, 32), (64, 160), (1000, 160)]
STORED = {
    "q4f16": Stored.symmetric(4, F16, group=32),
    "q4f32": Stored.symmetric(4, F32, group=32),
    "q8f16": Stored.symmetric(8, F16, group=32),
    "q8f32": Stored.symmetric(8, F32, group=32),
    "float16": Stored(0, F16),
    "float32": Stored(0, F32),
}
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 13]


def _packed(stored: str, arithmetic: str = FLOAT32) -> Stored:
    form = packed(STORED[stored], narrow=arithmetic == BFLOAT16)
    assert form is not None
    return form


def _pack(n: int, k: int, stored: str, arithmetic: str = FLOAT32) -> Case:
    form = _packed(stored, arithmetic)
    return told(pack, form), specs(STORED[stored], n, k), specs(form, n, k)


def _product(n: int, k: int, stored: str, arithmetic: str, rows: int | str) -> Case:
    form = _packed(stored, arithmetic)
    inputs = inputs_of(form, arithmetic)
    x = input_type(rows, k, inputs)
    args = [(*x.shape, x.dtype), *specs(form, n, k)]
    return told(product_cpu.linear_packed, form, inputs=inputs), args, [(rows, n, F32)]


def _arithmetics(stored: str) -> list[str]:
    return [FLOAT32, INT8] if STORED[stored].bits else [FLOAT32, BFLOAT16]


PACKS: dict[str, Case] = {
    f"pack_{stored}_{n}_{k}": _pack(n, k, stored) for n, k in SIZES[:3] for stored in STORED
}
PRODUCTS: dict[str, tuple[int, int, str, str]] = {
    f"{stored}_{arithmetic}_{n}_{k}": (n, k, stored, arithmetic)
    for n, k in SIZES
    for stored in STORED
    for arithmetic in _arithmetics(stored)
    if (n, k) == SIZES[0] or stored in ("q4f16", "float16")
}
NARROWS: dict[str, Case] = {
    f"narrow_{stored}_{n}_{k}": _pack(n, k, stored, BFLOAT16)
    for n, k in [*SIZES[:3], (33, 2)]
    for stored in (F16, F32)
}
INPUTS: dict[str, Case] = {
    "quantize": (activation.quantize, [("t", 96, F32)], [("t", 3, 10, U32)]),
    "round": (bfloat16.round_inputs, [("t", 96, F32)], [("t", 96, U16)]),
}
CASES = PACKS | NARROWS | INPUTS
FLOAT_PRODUCTS = {
    f"{rows}_{name}": _product(*at, rows)
    for name, at in PRODUCTS.items()
    for rows in (1, "m")
    if at[3] != INT8
}
BYTE_PRODUCTS = {
    f"{rows}_{name}": _product(*at, rows)
    for name, at in PRODUCTS.items()
    for rows in (1, "m")
    if at[3] == INT8
}


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    return compiled(CASES | FLOAT_PRODUCTS)


@pytest.fixture(scope="module")
def byte_kernels(kernels: Kernels, compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    if not kernels.multiplies_bytes:
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    return compiled(BYTE_PRODUCTS)


def _weight(n: int, k: int, name: str, target: Target) -> tuple[list[Array], Array, Array]:
    """What is stored of a random weight, its packed form, and its values."""
    stored = STORED[name]
    tensors = quantize(np.random.default_rng(n).standard_normal((n, k), np.float32), stored)
    if stored.bits:
        words, scales = tensors
        form = reference_grouped(words, scales, stored.bits, lanes(target))
    else:
        form = reference_plain(tensors[0])
    return tensors, form, dequantize(tensors, stored)


@pytest.mark.parametrize("name", PACKS)
def test_packing_is_exact(kernels: Kernels, name: str) -> None:
    _, stored, n, k = name.split("_")
    weights, expected, _ = _weight(int(n), int(k), stored, kernels.target)
    (found,) = kernels(name, *weights, outs=[(expected.shape, str(expected.dtype))])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NARROWS)
def test_packing_rounds_to_bfloat16(kernels: Kernels, name: str) -> None:
    _, stored, n, k = name.split("_")
    weight = np.random.default_rng(0).standard_normal((int(n), int(k)), np.float32).astype(stored)
    weight[0, :2], weight[1, :2] = [np.nan, np.inf], [6.1e-5, -6e-8]
    expected = reference_narrow(weight)
    (found,) = kernels(name, weight, outs=[(expected.shape, U16)])
    np.testing.assert_array_equal(found, expected)


def test_inputs_in_bfloat16(kernels: Kernels) -> None:
    """The reference is held against ml_dtypes, whose bfloat16 has the same rounding."""
    x = np.random.default_rng(0).integers(0, 2**32, (200, 96), np.uint32).view(F32)
    x[0, :4] = [np.nan, np.inf, -np.inf, 3.4e38]
    (bits,) = kernels("round", x, outs=[(x.shape, U16)])
    with np.errstate(invalid="ignore", over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(bits[number], expected.view(U16)[number])
    assert np.isnan(bfloat16.widened(bits)[~number]).all()
    np.testing.assert_array_equal(bits, bfloat16.reference(x))


@pytest.mark.parametrize("name", [name for name, at in PRODUCTS.items() if at[3] == BFLOAT16])
def test_product_in_bfloat16(kernels: Kernels, name: str) -> None:
    n, k, stored, _ = PRODUCTS[name]
    (weight,), _, _ = _weight(n, k, stored, kernels.target)
    form = reference_narrow(weight)
    dense = bfloat16.widened(bfloat16.reference(weight))
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        bits = bfloat16.reference(x)
        rounded = bfloat16.widened(bits).astype(np.float64) @ dense.astype(np.float64).T
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = kernels(f"{kind}_{name}", bits, form, outs=[((rows, n), F32)])
            assert error_ratio(y, rounded) < RATIO, f"{rows} rows"
            assert error_ratio(y, exact) < 2 * NARROW_RATIO, f"{rows} rows"


def test_quantized_inputs(kernels: Kernels) -> None:
    x = 3 * np.random.default_rng(0).standard_normal((5, 96), np.float32)
    x[1, :32] = 0
    x[2, 40], x[3, 2], x[4, 95] = np.nan, np.inf, 3e38
    (records,) = kernels("quantize", x, outs=[((5, 3, 10), U32)])
    finite: Array = np.all(np.isfinite(x.reshape(5, 3, 32)), axis=2)
    expected = activation.reference(np.where(np.isfinite(x), x, np.float32(0)))
    np.testing.assert_array_equal(records[finite], expected[finite])
    values = activation.dequantized(records).reshape(5, 3, 32)
    assert np.isnan(values[~finite]).all()
    groups = np.where(finite[:, :, None], x.reshape(5, 3, 32), 0).astype(np.float64)
    error = np.abs(values - groups)[finite]
    assert (error <= np.abs(groups).max(axis=2)[finite][:, None] / 253).all()


@pytest.mark.parametrize("name", [name for name, at in PRODUCTS.items() if at[3] == FLOAT32])
def test_product_in_float32(kernels: Kernels, name: str) -> None:
    n, k, stored, _ = PRODUCTS[name]
    _, form, dense = _weight(n, k, stored, kernels.target)
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        exact = x.astype(np.float64) @ dense.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = kernels(f"{kind}_{name}", x, form, outs=[((rows, n), F32)])
            assert error_ratio(y, exact) < RATIO, f"{rows} rows"


@pytest.mark.parametrize("name", [name for name, at in PRODUCTS.items() if at[3] == INT8])
def test_product_of_bytes(byte_kernels: Kernels, name: str) -> None:
    n, k, stored, _ = PRODUCTS[name]
    _, form, dense = _weight(n, k, stored, byte_kernels.target)
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        records = activation.reference(x)
        rounded = activation.dequantized(records).astype(np.float64) @ dense.astype(np.float64).T
        exact = x.astype(np.float64) @ dense.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = byte_kernels(f"{kind}_{name}", records, form, outs=[((rows, n), F32)])
            assert error_ratio(y, rounded) < RATIO, f"{rows} rows"
            assert error_ratio(y, exact) < 2 * ROUNDING_RATIO, f"{rows} rows"


@pytest.mark.parametrize(
    ("stored", "arithmetic", "streams"),
    [("q4f16", INT8, 2), ("float16", FLOAT32, 4), ("float16", BFLOAT16, 4)],
)
def test_large_weights_are_read_in_streams(
    kernels: Kernels, stored: str, arithmetic: str, streams: int
) -> None:
    if arithmetic == INT8 and not kernels.multiplies_bytes:
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    for (n, k), expected in zip(SIZES, [1, 1, 1, streams], strict=True):
        form = _packed(stored, arithmetic)
        (weight,), inputs = stored_types(form, n, k), inputs_of(form, arithmetic)
        x = input_type(1, k, inputs)
        sig = Signature([x, weight], [], kernels.target, [form], inputs)
        product = product_cpu.Product(x, weight, form, sig)
        assert product.streams == expected
        assert product.streams * product.tasks == weight.static(0)


@pytest.mark.parametrize("stored", ["q4f16", "q8f16"])
def test_the_largest_values_do_not_overflow(byte_kernels: Kernels, stored: str) -> None:
    """Every pair of products at once at its bound, of either sign."""
    dense = np.ones((70, 96), np.float32)
    dense[::2] = -1
    words, scales = quantize(dense, STORED[stored])
    form = reference_grouped(words, scales, STORED[stored].bits, lanes(byte_kernels.target))
    x = np.full((3, 96), 2.0, F32)
    x[1] *= -1
    (y,) = byte_kernels(
        f"m_{stored}_int8_70_96", activation.reference(x), form, outs=[((3, 70), F32)]
    )
    np.testing.assert_allclose(y, x @ dequantize([words, scales], STORED[stored]).T, rtol=1e-6)
