"""RWKV-5's and 6's fused kernels on a CPU against the reference in float64, in each arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import packing
import pytest
import tvm
from compiling import Array, Case, Kernels, error_ratio, specs, told

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.packed_weight import packed
from mlc_rwkv_world.kernels.formulas import head_norm, sigmoid
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.versions.rwkv5 import reference
from mlc_rwkv_world.versions.rwkv5.cpu import heads, products
from mlc_rwkv_world.versions.rwkv6.cpu import mixes

pytestmark = pytest.mark.slow

F32 = "float32"
# Of the mixes, two blocks each, and of the decay.
MIXING, RANK = 64, 96
LENGTHS = [3, 1, 7]
LAYERS, LAYER, ROW, EPS = 2, 1, 1, 64e-5
# By arithmetic, of root mean squares: float32's rounding, and results rounded to 8 bits each or
# to bfloat16.
RATIO = {FLOAT32: 2e-6, INT8: 8e-3, BFLOAT16: 3e-3}
# How large matrices and the factors of small products lie.
STORED = {
    FLOAT32: (Stored(0, "float16"), Stored(0, "float16")),
    INT8: tuple(Stored.symmetric(bits, "float16", group=32) for bits in (4, 8)),
    BFLOAT16: (Stored(0, "float16"), Stored(0, "float16")),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one case: rows that are known or not, in sequences or steps; the heads; the version.

    5.0 has no gate, and only RWKV-6's decay is made from the input.
    """

    rows: int | str
    size: int
    heads: int
    version: str
    ragged: bool = False

    @property
    def name(self) -> str:
        kind = "ragged" if self.ragged else "step"
        return f"{self.version}_{self.rows}_{self.size}_{kind}"

    @property
    def width(self) -> int:
        return self.size * self.heads

    @property
    def gated(self) -> bool:
        return self.version != "5.0"

    @property
    def fixed(self) -> bool:
        return self.version != "6.0"

    @property
    def count(self) -> int:
        return sum(LENGTHS) if self.rows != 1 else 1

    @property
    def offsets(self) -> Array:
        ends = [0, *LENGTHS] if self.ragged else [0, *[1] * self.count]
        return np.cumsum(ends).astype(np.int32)


PRODUCTS = [
    Shape(1, 64, 3, "6.0"),
    Shape("m", 64, 3, "6.0", ragged=True),
    Shape("m", 128, 1, "5.0", ragged=True),
]
HEADS = [*PRODUCTS, Shape("m", 32, 3, "6.0"), Shape(1, 64, 2, "5.2")]
BLENDS = PRODUCTS[:2]


def _forms(arithmetic: str) -> tuple[Stored, Stored]:
    found = [packed(one, narrow=arithmetic == BFLOAT16) for one in STORED[arithmetic]]
    large, small = found
    assert large is not None and small is not None
    return large, small


def _cases(arithmetic: str) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    large, small = _forms(arithmetic)
    kind = inputs_of(large, arithmetic)

    def given(rows: int | str, k: int) -> tuple[object, ...]:
        ty = input_type(rows, k, kind)
        return (*ty.shape, ty.dtype)

    def weight(form: Stored, n: int, k: int) -> tuple[object, ...]:
        return specs(form, n, k)[0]

    for shape in PRODUCTS:
        width, rows, count = shape.width, shape.rows, 3 + shape.gated
        few = not shape.fixed
        cases[f"products_{shape.name}"] = (
            told(products.products, *[large] * count, *[small] * few, inputs=kind),
            [
                *[given(rows, width)] * (count + few),
                *[weight(large, width, width)] * count,
                *[weight(small, RANK, width)] * few,
            ],
            [*[(rows, width, F32)] * count, *[given(rows, RANK)] * few],
        )
    for shape in BLENDS:
        width, rows, n = shape.width, shape.rows, len(MIXES)
        cases[f"hidden_{shape.name}"] = (
            told(mixes.hidden, *[small] * n, inputs=kind),
            [*[given(rows, width)] * n, *[weight(small, n * MIXING, width)] * n],
            [given(rows, MIXING)] * n,
        )
        cases[f"mixes_{shape.name}"] = (
            told(mixes.mixes, *[small] * n, inputs=kind),
            [
                *[(rows, width, F32)] * 2,
                *[given(rows, MIXING)] * n,
                *[weight(small, width, MIXING)] * n,
                *[(width, F32)] * n,
            ],
            [given(rows, width)] * n,
        )
    for shape in HEADS:
        width, rows = shape.width, shape.rows
        by_head = (shape.heads, shape.size, F32)
        build = partial(
            heads.heads,
            size=shape.size,
            eps=EPS,
            gated=shape.gated,
            fixed=shape.fixed,
            step=not shape.ragged,
        )
        made = [] if shape.fixed else [given(rows, RANK), weight(small, width, RANK)]
        cases[f"heads_{shape.name}"] = (
            told(build, *[small] * (not shape.fixed), inputs=kind),
            [
                *[(rows, width, F32)] * (3 + shape.gated),
                *made,
                by_head if shape.fixed else (width, F32),
                by_head,
                *[(width, F32)] * 2,
                *([("o", "int32")] if shape.ragged else []),
                ("s", LAYERS, shape.size + 2, width, F32),
                ("b" if shape.ragged else rows, 2, "int32"),
            ],
            [given(rows, width)],
        )
    return cases


@pytest.fixture(scope="module", params=RATIO)
def arithmetic(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernels(arithmetic: str, compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    if arithmetic == INT8 and not compiled({}).multiplies_bytes:
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    return compiled(_cases(arithmetic))


class _Bench:
    """Random inputs and weights of a shape, beside float64 twins of what they hold."""

    def __init__(self, kernels: Kernels, arithmetic: str, shape: Shape) -> None:
        self.kernels, self.arithmetic, self.shape = kernels, arithmetic, shape
        self.large, self.small = _forms(arithmetic)
        self.kind = inputs_of(self.large, arithmetic)
        self.rng = np.random.default_rng(1)

    def floats(self, *shape: int) -> Array:
        return self.rng.normal(0, 1, shape).astype(F32)

    def given(self, k: int) -> tuple[Array, Array]:
        return packing.given(self.floats(self.shape.count, k), self.kind)

    def weight(self, form: Stored, n: int, k: int, scale: float = 1) -> tuple[Array, Array]:
        dense = self.rng.normal(0, scale * k**-0.5, (n, k)).astype(F32)
        return packing.weight(dense, form, self.kernels.target)

    def input(self, k: int) -> tuple[tuple[int, ...], str]:
        """An input of a product as a result."""
        ty = input_type(self.shape.count, k, self.kind)
        return ty.shape, ty.dtype

    def close(self, found: Array, exact: Array, *, rounded: bool = True) -> None:
        ratio = RATIO[self.arithmetic if rounded else FLOAT32]
        assert error_ratio(packing.values(found), exact) < ratio


@pytest.mark.parametrize("shape", PRODUCTS, ids=lambda shape: shape.name)
def test_products(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    bench, width, large = _Bench(kernels, arithmetic, shape), shape.width, 3 + shape.gated
    inputs = [bench.given(width) for _ in range(large + (not shape.fixed))]
    weights = [bench.weight(bench.large, width, width) for _ in range(large)]
    outs: list[tuple[tuple[int, ...], str]] = [((shape.count, width), F32)] * large
    if not shape.fixed:
        weights.append(bench.weight(bench.small, RANK, width))
        outs.append(bench.input(RANK))
    args = [x for x, _ in (*inputs, *weights)]
    found = kernels(f"products_{shape.name}", *args, outs=outs)
    exact = [x @ w.T for (_, x), (_, w) in zip(inputs, weights, strict=True)]
    if shape.gated:
        exact[3] *= sigmoid(exact[3])
    if not shape.fixed:
        exact[4] = np.tanh(exact[4])
    for number, (out, wanted) in enumerate(zip(found, exact, strict=True)):
        bench.close(out, wanted, rounded=number == 4)


@pytest.mark.parametrize("shape", BLENDS, ids=lambda shape: shape.name)
def test_hidden(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    bench, width, n = _Bench(kernels, arithmetic, shape), shape.width, len(MIXES)
    (x, values), (w, weight) = bench.given(width), bench.weight(bench.small, n * MIXING, width)
    outs = [bench.input(MIXING)] * n
    found = kernels(f"hidden_{shape.name}", *[x] * n, *[w] * n, outs=outs)
    exact = np.split(np.tanh(values @ weight.T), n, axis=1)
    for out, wanted in zip(found, exact, strict=True):
        bench.close(out, wanted)


@pytest.mark.parametrize("shape", BLENDS, ids=lambda shape: shape.name)
def test_mixes(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    bench, width = _Bench(kernels, arithmetic, shape), shape.width
    x, previous = bench.floats(shape.count, width), bench.floats(shape.count, width)
    hidden = [bench.given(MIXING) for _ in MIXES]
    # As much as leaves the results about normal, whose groups' bytes lose little.
    weights = [bench.weight(bench.small, width, MIXING, 0.3) for _ in MIXES]
    shares = [bench.rng.uniform(0, 1, width).astype(F32) for _ in MIXES]
    args = [x, previous, *(one for one, _ in (*hidden, *weights)), *shares]
    found = kernels(f"mixes_{shape.name}", *args, outs=[bench.input(width)] * len(MIXES))
    change = previous.astype(float) - x
    for out, (_, h), (_, w), share in zip(found, hidden, weights, shares, strict=True):
        bench.close(out, x + change * (share + h @ w.T))


@pytest.mark.parametrize("shape", HEADS, ids=lambda shape: shape.name)
def test_heads(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    bench, width, size = _Bench(kernels, arithmetic, shape), shape.width, shape.size
    r, k, v = bench.floats(3, shape.count, width)
    # Of one size, so that the results are about normal.
    gate = bench.rng.uniform(0.5, 1.5, (int(shape.gated), shape.count, width)).astype(F32)
    # From what keeps nearly all to what keeps nothing.
    decay = bench.rng.normal(-2, 2.5, width).astype(F32)
    first = bench.rng.normal(0, 0.5, (shape.heads, size)).astype(F32)
    norm = [bench.rng.normal(1, 0.2, width).astype(F32), bench.floats(width)]
    made: list[Array] = []
    rate = decay.astype(float)
    if shape.fixed:
        decay = decay.reshape(first.shape)
    else:
        (hidden, h), (factor, w2) = bench.given(RANK), bench.weight(bench.small, width, RANK)
        made, rate = [hidden, factor], rate + h @ w2.T
    offsets = shape.offsets
    batch = len(offsets) - 1
    before = bench.floats(2 * batch + 1, LAYERS, size + 2, width)
    # Slots in no order, of which one has no part in it; the last sequence writes what it reads.
    slots = bench.rng.permutation(2 * batch + 1)[: 2 * batch].reshape(batch, 2).astype(np.int32)
    slots[-1, 1] = slots[-1, 0]
    # Where nobody reads, there is nothing yet.
    before[[n for n in range(2 * batch + 1) if n not in slots[:, 0]]] = np.nan
    pool = tvm.runtime.tensor(before)
    args = [
        *(r, k, v, *gate, *made, decay, first, *norm),
        *([offsets] if shape.ragged else []),
        *(pool, slots, LAYER, ROW),
    ]
    (gated,) = kernels(f"heads_{shape.name}", *args, outs=[bench.input(width)])

    def wide(x: Array) -> Array:
        return x.astype(float)

    state = wide(before[slots[:, 0], LAYER, ROW : ROW + size])
    kept = np.exp(-np.exp(rate))
    y, after = reference.wkv(wide(r), kept, wide(k), wide(v), wide(first), state, offsets)
    weight, bias = map(wide, norm)
    exact = head_norm(y, weight, bias, size, EPS)
    for g in gate:
        exact = exact * g
    assert error_ratio(packing.values(gated), exact) < max(RATIO[arithmetic], 5e-6)
    found, expected = pool.numpy(), before.copy()
    written = found[slots[:, 1], LAYER, ROW : ROW + size]
    assert error_ratio(written, after) < 5e-6
    expected[slots[:, 1], LAYER, ROW : ROW + size] = written
    np.testing.assert_array_equal(found, expected)
