"""RWKV-7's fused kernels on a CPU against its reference in float64, in each arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import packing
import pytest
import tvm
from compiling import Array, Case, Kernels, error_ratio, specs, told

from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.packed_weight import packed
from mlc_rwkv_world.kernels.formulas import sigmoid
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.versions.rwkv7 import reference
from mlc_rwkv_world.versions.rwkv7.cpu import heads, products

pytestmark = pytest.mark.slow

F32 = "float32"
RANKS = {"w": 96, "a": 32, "v": 64, "g": 160}
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
    """Of one case: rows that are known or not, in sequences or steps; the heads; a shared value."""

    rows: int | str
    size: int
    heads: int
    shared: bool
    ragged: bool = False

    @property
    def name(self) -> str:
        kind = "ragged" if self.ragged else "step"
        return f"{self.rows}_{self.size}_{self.shared}_{kind}"

    @property
    def width(self) -> int:
        return self.size * self.heads

    @property
    def letters(self) -> str:
        return "wavg" if self.shared else "wag"

    @property
    def count(self) -> int:
        return sum(LENGTHS) if self.rows != 1 else 1

    @property
    def offsets(self) -> Array:
        ends = [0, *LENGTHS] if self.ragged else [0, *[1] * self.count]
        return np.cumsum(ends).astype(np.int32)


SHAPES = [
    Shape(1, 64, 3, shared=True),
    Shape("m", 32, 3, shared=True),
    Shape("m", 64, 3, shared=True, ragged=True),
    Shape("m", 128, 1, shared=False, ragged=True),
]


def _forms(arithmetic: str) -> tuple[Stored, Stored]:
    found = [packed(one, narrow=arithmetic == BFLOAT16) for one in STORED[arithmetic]]
    large, small = found
    assert large is not None and small is not None
    return large, small


def _cases(arithmetic: str) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    large, small = _forms(arithmetic)
    kind = inputs_of(large, arithmetic)
    for shape in SHAPES:
        row, vector = (shape.rows, shape.width, F32), (shape.width, F32)

        def given(k: int, shape: Shape = shape) -> tuple[object, ...]:
            ty = input_type(shape.rows, k, kind)
            return (*ty.shape, ty.dtype)

        def weight(form: Stored, n: int, k: int) -> tuple[object, ...]:
            return specs(form, n, k)[0]

        ranks, width = [RANKS[letter] for letter in shape.letters], shape.width
        hidden = [given(rank) for rank in ranks]
        weights = [weight(large, width, width)] * 3 + [weight(small, n, width) for n in ranks]
        forms = [large] * 3 + [small] * len(ranks)
        cases[f"products_{shape.name}"] = (
            told(products.products, *forms, inputs=kind),
            [*[given(width)] * len(weights), *weights],
            [row, row, row, *hidden],
        )
        build = partial(
            heads.heads, size=shape.size, eps=EPS, shared=shape.shared, step=not shape.ragged
        )
        offsets = [("o", "int32")] if shape.ragged else []
        pool = ("s", LAYERS, shape.size + 2, width, F32)
        cases[f"heads_{shape.name}"] = (
            told(build, *[small] * len(ranks), inputs=kind),
            [
                *[row] * (4 if shape.shared else 3),
                *hidden,
                *(weight(small, width, n) for n in ranks),
                *[vector] * (5 if shape.shared else 4),
                (shape.heads, shape.size, F32),
                *[vector] * 2,
                *offsets,
                pool,
                ("b" if shape.ragged else shape.rows, 2, "int32"),
            ],
            [given(width)],
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


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


def test_products(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    rng = np.random.default_rng(1)
    (large, small), width = _forms(arithmetic), shape.width
    kind = inputs_of(large, arithmetic)
    blends = {
        letter: packing.given(rng.normal(0, 1, (shape.count, width)).astype(F32), kind)
        for letter in "rwkvag"
    }
    made, exact = [], []
    for letter in "rkv":
        dense = rng.normal(0, width**-0.5, (width, width)).astype(F32)
        form, values = packing.weight(dense, large, kernels.target)
        made.append(form)
        exact.append(blends[letter][1] @ values.T)
    acts: dict[str, Callable[[Array], Array]] = {"w": np.tanh, "g": sigmoid}
    for letter in shape.letters:
        dense = rng.normal(0, width**-0.5, (RANKS[letter], width)).astype(F32)
        form, values = packing.weight(dense, small, kernels.target)
        made.append(form)
        exact.append(acts.get(letter, np.asarray)(blends[letter][1] @ values.T))
    row = ((shape.count, width), F32)
    outs = [row] * 3
    for letter in shape.letters:
        ty = input_type(shape.count, RANKS[letter], kind)
        outs.append((ty.shape, ty.dtype))
    inputs = [blends[letter][0] for letter in f"rkv{shape.letters}"]
    found = kernels(f"products_{shape.name}", *inputs, *made, outs=outs)
    for number, (out, wanted) in enumerate(zip(found, exact, strict=True)):
        ratio = RATIO[FLOAT32 if number < 3 else arithmetic]
        assert error_ratio(packing.values(out), wanted) < ratio


def test_heads(kernels: Kernels, arithmetic: str, shape: Shape) -> None:
    rng = np.random.default_rng(2)
    (_, small), width, size = _forms(arithmetic), shape.width, shape.size
    kind = inputs_of(small, arithmetic)
    rows = (shape.count, width)
    r, k, v, value_first = rng.normal(0, 1, (4, *rows)).astype(F32)
    # A head whose key is zero is not stretched.
    k[-1, :size] = 0
    hidden = {
        n: packing.given(rng.normal(0, 1, (shape.count, RANKS[n])).astype(F32), kind)
        for n in shape.letters
    }
    factors = {
        n: packing.weight(
            rng.normal(0, RANKS[n] ** -0.5, (width, RANKS[n])).astype(F32), small, kernels.target
        )
        for n in shape.letters
    }
    up = {n: hidden[n][1] @ factors[n][1].T for n in shape.letters}
    bases = {n: rng.normal(0, 1, width).astype(F32) for n in shape.letters if n != "g"}
    k_k, k_a = rng.normal(0.9, 0.2, (2, width)).astype(F32)
    r_k = rng.normal(0, 0.2, (shape.heads, size)).astype(F32)
    norm = [rng.normal(1, 0.2, width).astype(F32), rng.normal(0, 0.2, width).astype(F32)]
    offsets = shape.offsets
    batch = len(offsets) - 1
    before = rng.normal(0, 1, (2 * batch + 1, LAYERS, size + 2, width)).astype(F32)
    # Slots in no order, of which one has no part in it; the last sequence writes what it reads.
    slots = rng.permutation(2 * batch + 1)[: 2 * batch].reshape(batch, 2).astype(np.int32)
    slots[-1, 1] = slots[-1, 0]
    # Where nobody reads, there is nothing yet.
    before[[n for n in range(2 * batch + 1) if n not in slots[:, 0]]] = np.nan
    pool = tvm.runtime.tensor(before)
    args = [
        *([r, k, v, value_first] if shape.shared else [r, k, v]),
        *(x for x, _ in hidden.values()),
        *(x for x, _ in factors.values()),
        *bases.values(),
        *(k_k, k_a, r_k, *norm),
        *([offsets] if shape.ragged else []),
        *(pool, slots, LAYER, ROW),
    ]
    ty = input_type(shape.count, width, kind)
    (gated,) = kernels(f"heads_{shape.name}", *args, outs=[(ty.shape, ty.dtype)])

    def wide(x: Array) -> Array:
        return x.astype(float)

    decay = np.exp(-reference.DECAY_RATE * sigmoid(wide(bases["w"]) + up["w"]))
    a, v_exact = sigmoid(wide(bases["a"]) + up["a"]), wide(v)
    if shape.shared:
        share = sigmoid(wide(bases["v"]) + up["v"])
        v_exact = v_exact + (wide(value_first) - v_exact) * share
    k_exact, kk, b = reference.keys(wide(k), a, wide(k_k), wide(k_a), size)
    state = wide(before[slots[:, 0], LAYER, ROW : ROW + size])
    y, after = reference.wkv(wide(r), decay, k_exact, v_exact, kk, b, state, offsets)
    normal = partial(reference.head_norm, eps=EPS)(
        y, wide(r), k_exact, v_exact, wide(r_k), *map(wide, norm)
    )
    exact = normal * up["g"]
    assert error_ratio(packing.values(gated), exact) < max(RATIO[arithmetic], 5e-6)
    found, expected = pool.numpy(), before.copy()
    written = found[slots[:, 1], LAYER, ROW : ROW + size]
    assert error_ratio(written, after) < 5e-6
    expected[slots[:, 1], LAYER, ROW : ROW + size] = written
    np.testing.assert_array_equal(found, expected)
