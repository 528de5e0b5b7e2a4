"""Packed weights, inputs as bytes or bfloat16, and their products, against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import pytest
from compiling import Array, Case, Kernels, error_ratio
from tvm.target import Target

from mlc_rwkv_world.kernels import activation, bfloat16, product_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import BFLOAT16, FLOAT32, INT8, input_type
from mlc_rwkv_world.kernels.cpu_features import lanes
from mlc_rwkv_world.kernels.packed_weight import (
    pack,
    packed_type,
    reference_grouped,
    reference_narrow,
    reference_plain,
)
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.quantization.group import dequantize, quantize

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
    "q4f16": (4, F16),
    "q4f32": (4, F32),
    "q8f16": (8, F16),
    "q8f32": (8, F32),
    "float16": (0, F16),
    "float32": (0, F32),
}
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 13]
Spec = tuple[object, ...]


def _stored_types(n: int, k: int, bits: int, dtype: str) -> list[Spec]:
    if bits == 0:
        return [(n, k, dtype)]
    return [(n, k * bits // 32, U32), (n, k // 32, dtype)]


def _spec(ty: TensorType) -> Spec:
    return (*ty.shape, ty.dtype)


def _packed(n: int, k: int, stored: str, arithmetic: str = FLOAT32) -> TensorType:
    types = [TensorType(t[:-1], str(t[-1])) for t in _stored_types(n, k, *STORED[stored])]
    return packed_type(types, k, narrow=arithmetic == BFLOAT16)


def _product(n: int, k: int, stored: str, arithmetic: str, rows: int | str) -> Case:
    weight = _packed(n, k, stored, arithmetic)
    x = input_type(rows, weight, arithmetic)
    return product_cpu.linear, [_spec(x), _spec(weight)], [(rows, n, F32)]


def _arithmetics(stored: str) -> list[str]:
    return [FLOAT32, INT8] if STORED[stored][0] else [FLOAT32, BFLOAT16]


PACKS: dict[str, Case] = {
    f"pack_{stored}_{n}_{k}": (
        pack,
        _stored_types(n, k, *STORED[stored]),
        [_spec(_packed(n, k, stored))],
    )
    for n, k in SIZES[:2]
    for stored in STORED
}
PRODUCTS: dict[str, tuple[int, int, str, str]] = {
    f"{stored}_{arithmetic}_{n}_{k}": (n, k, stored, arithmetic)
    for n, k in SIZES
    for stored in STORED
    for arithmetic in _arithmetics(stored)
    if (n, k) == SIZES[0] or stored in ("q4f16", "float16")
}
NARROWS: dict[str, Case] = {
    f"narrow_{stored}_{n}_{k}": (
        pack,
        _stored_types(n, k, *STORED[stored]),
        [_spec(_packed(n, k, stored, BFLOAT16))],
    )
    for n, k in [*SIZES[:2], (33, 2)]
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


def _weight(n: int, k: int, stored: str, target: Target) -> tuple[tuple[Array, ...], Array, Array]:
    """What is stored of a random weight, its packed form, and its values."""
    bits, dtype = STORED[stored]
    dense = np.random.default_rng(n).standard_normal((n, k), np.float32)
    if bits == 0:
        weight = dense.astype(dtype)
        return (weight,), reference_plain(weight), weight
    words, scales = quantize(dense, bits, dtype)
    packed = reference_grouped(words, scales, bits, lanes(target))
    return (words, scales), packed, dequantize(words, scales, bits)


@pytest.mark.parametrize("name", PACKS)
def test_packing_is_exact(kernels: Kernels, name: str) -> None:
    _, stored, n, k = name.split("_")
    weights, expected, _ = _weight(int(n), int(k), stored, kernels.target)
    (packed,) = kernels(name, *weights, outs=[(expected.shape, str(expected.dtype))])
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("name", NARROWS)
def test_packing_rounds_to_bfloat16(kernels: Kernels, name: str) -> None:
    _, stored, n, k = name.split("_")
    weight = np.random.default_rng(0).standard_normal((int(n), int(k)), F32).astype(stored)
    weight[0, :2], weight[1, :2] = [np.nan, np.inf], [6.1e-5, -6e-8]
    expected = reference_narrow(weight)
    (packed,) = kernels(name, weight, outs=[(expected.shape, U16)])
    np.testing.assert_array_equal(packed, expected)


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
    packed = reference_narrow(weight)
    dense = bfloat16.widened(bfloat16.reference(weight))
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        bits = bfloat16.reference(x)
        rounded = bfloat16.widened(bits).astype(np.float64) @ dense.astype(np.float64).T
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = kernels(f"{kind}_{name}", bits, packed, outs=[((rows, n), F32)])
            assert error_ratio(y, rounded) < RATIO, f"{rows} rows"
            assert error_ratio(y, exact) < 2 * NARROW_RATIO, f"{rows} rows"


def test_quantized_inputs(kernels: Kernels) -> None:
    x = 3 * np.random.default_rng(0).standard_normal((5, 96), np.float32)
    x[1, :32] = 0
    x[2, 40], x[3, 2], x[4, 95] = np.nan, np.inf, 3e38
    (records,) = kernels("quantize", x, outs=[((5, 3, 10), U32)])
    finite = np.isfinite(x.reshape(5, 3, 32)).all(axis=2)
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
    _, packed, dense = _weight(n, k, stored, kernels.target)
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        exact = x.astype(np.float64) @ dense.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = kernels(f"{kind}_{name}", x, packed, outs=[((rows, n), F32)])
            assert error_ratio(y, exact) < RATIO, f"{rows} rows"


@pytest.mark.parametrize("name", [name for name, at in PRODUCTS.items() if at[3] == INT8])
def test_product_of_bytes(byte_kernels: Kernels, name: str) -> None:
    n, k, stored, _ = PRODUCTS[name]
    _, packed, dense = _weight(n, k, stored, byte_kernels.target)
    for rows in LENGTHS:
        x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
        records = activation.reference(x)
        rounded = activation.dequantized(records).astype(np.float64) @ dense.astype(np.float64).T
        exact = x.astype(np.float64) @ dense.astype(np.float64).T
        for kind in ["1", "m"] if rows == 1 else ["m"]:
            (y,) = byte_kernels(f"{kind}_{name}", records, packed, outs=[((rows, n), F32)])
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
        weight = _packed(n, k, stored, arithmetic)
        product = product_cpu.Product(input_type(1, weight, arithmetic), weight, kernels.target)
        assert product.streams == expected
        assert product.streams * product.tasks == weight.static(0)


@pytest.mark.parametrize("stored", ["q4f16", "q8f16"])
def test_the_largest_values_do_not_overflow(byte_kernels: Kernels, stored: str) -> None:
    """Every pair of products at once at its bound, of either sign."""
    bits, _ = STORED[stored]
    dense = np.ones((70, 96), np.float32)
    dense[::2] = -1
    words, scales = quantize(dense, bits, F16)
    packed = reference_grouped(words, scales, bits, lanes(byte_kernels.target))
    x = np.full((3, 96), 2.0, F32)
    x[1] *= -1
    (y,) = byte_kernels(
        f"m_{stored}_int8_70_96", activation.reference(x), packed, outs=[((3, 70), F32)]
    )
    np.testing.assert_allclose(y, x @ dequantize(words, scales, bits).T, rtol=1e-6)
