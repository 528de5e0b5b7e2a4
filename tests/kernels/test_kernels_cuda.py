"""CUDA kernels, as TVM's CUDA source on an emulated GPU, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiling import Array, Case, error_ratio, specs, told
from support import cuda_emulation

from mlc_rwkv_world.kernels.linear import linear, reference
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

# A float32 sum of some thousand products; a float16 result adds its own rounding.
RATIO = {"float32": 5e-7, "float16": 3.5e-4}
STORED = {
    "float32": Stored(0, "float32"),
    "float16": Stored(0, "float16"),
    "q4": Stored.symmetric(4, "float16", group=32),
    "q8": Stored.symmetric(8, "float16", group=32),
}
# (storage, type of x, type of the result, N, K): whole steps and partial ones, rows that do not
# divide among warps, one warp for a row and several, and the smallest sizes that are streamed.
PRODUCTS = [
    ("float16", "float16", "float32", 64, 256),
    ("float16", "float16", "float16", 7, 64),
    ("float16", "float32", "float32", 34, 1096),
    ("float32", "float32", "float32", 66, 2048),
    ("float32", "float32", "float32", 3, 4),
    ("q4", "float16", "float16", 64, 1024),
    ("q4", "float16", "float32", 33, 768),
    ("q4", "float32", "float32", 6, 2560),
    ("q4", "float16", "float16", 2, 8192),
    ("q8", "float16", "float16", 40, 256),
    ("q8", "float32", "float32", 5, 1280),
]


def _name(storage: str, x: str, y: str, n: int, k: int) -> str:
    return f"{storage}_{x}_{y}_{n}_{k}"


def _case(rows: int | str, storage: str, x: str, y: str, n: int, k: int) -> Case:
    stored = STORED[storage]
    return told(linear, stored), [(rows, k, x), *specs(stored, n, k)], [(rows, n, y)]


def _weight(rng: np.random.Generator, storage: str, n: int, k: int) -> tuple[Array, list[Array]]:
    """The dense values that a weight stands for, and how it is stored."""
    tensors = quantize(rng.standard_normal((n, k), np.float32), STORED[storage])
    return dequantize(tensors, STORED[storage]), tensors


# (storage, type of the result, N, K) for several rows of float16: tiles that N, K and the rows do
# not fill, in every way of storing W.
TILED = [
    ("float16", "float32", 96, 288),
    ("float16", "float16", 129, 40),
    ("q4", "float32", 96, 288),
    ("q4", "float16", 40, 256),
    ("q8", "float32", 72, 160),
]
# On both sides of where another tile takes over.
ROWS = [1, 2, 16, 17, 64, 65, 130]


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[Array, Array]]:
    """For each product and count of rows, what the kernel gives, and the exact values."""
    rng = np.random.default_rng(5)
    cases: dict[str, Case] = {}
    calls: list[tuple[str, Any]] = []
    exact = {}
    for storage, x_type, y_type, n, k in PRODUCTS:
        name = _name(storage, x_type, y_type, n, k)
        dense, stored = _weight(rng, storage, n, k)
        x = rng.standard_normal((1, k)).astype(x_type)
        cases[name] = _case(1, storage, x_type, y_type, n, k)
        calls.append((name, ([x, *stored], [((1, n), y_type)])))
        exact[name] = reference(x, dense)
    for storage, y_type, n, k in TILED:
        name = "tiled_" + _name(storage, "float16", y_type, n, k)
        dense, stored = _weight(rng, storage, n, k)
        cases[name] = _case("rows", storage, "float16", y_type, n, k)
        for rows in ROWS:
            x = rng.standard_normal((rows, k)).astype("float16")
            calls.append((name, ([x, *stored], [((rows, n), y_type)])))
            exact[f"{name}_{rows}"] = reference(x, dense)
    got = cuda_emulation.run("emulated:compute", cases, calls)
    names = list(exact)
    return {name: (y, exact[name]) for name, (y, *_) in zip(names, got, strict=True)}


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: _name(*product))
def test_one_row(answers: dict[str, tuple[Array, Array]], product: tuple[Any, ...]) -> None:
    actual, exact = answers[_name(*product)]
    assert error_ratio(actual, exact) < RATIO[product[2]]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("product", TILED, ids=lambda p: _name(p[0], "float16", *p[1:]))
def test_several_rows(
    answers: dict[str, tuple[Array, Array]], product: tuple[Any, ...], rows: int
) -> None:
    storage, y_type, n, k = product
    actual, exact = answers[f"tiled_{_name(storage, 'float16', y_type, n, k)}_{rows}"]
    # Four-bit and eight-bit values are rounded to float16 once they are scaled.
    assert error_ratio(actual, exact) < (RATIO[y_type] if storage == "float16" else 5e-4)


# Ways of storing W that no kernel of ours suits: dlight schedules the general one.
GENERAL = {
    "q4_of_64": Stored.symmetric(4, "float16", group=64),
    "q8_by_row": Stored.symmetric(8, "float32", group=0),
}


def test_other_ways_of_storing() -> None:
    rng = np.random.default_rng(8)
    n, k = 40, 192
    cases: dict[str, Case] = {}
    calls: list[tuple[str, Any]] = []
    exact = []
    for name, stored in GENERAL.items():
        tensors = quantize(rng.standard_normal((n, k), np.float32), stored)
        for rows in (1, 17):
            x = rng.standard_normal((rows, k), np.float32)
            args = [("rows" if rows > 1 else 1, k, "float32"), *specs(stored, n, k)]
            cases[f"{name}_{rows}"] = told(linear, stored), args, [(*args[0][:1], n, "float32")]
            calls.append((f"{name}_{rows}", ([x, *tensors], [((rows, n), "float32")])))
            exact.append(reference(x, dequantize(tensors, stored)))
    got = cuda_emulation.run("emulated:compute", cases, calls, True)
    for (y, *_), wanted in zip(got, exact, strict=True):
        assert error_ratio(y, wanted) < RATIO["float32"]
