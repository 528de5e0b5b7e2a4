"""The fused kernels of a block on a CPU against float64, in each arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import packing
import pytest
import tvm
from compiling import Array, Case, Kernels, error_ratio, specs, told

from mlc_rwkv_world.kernels.common.layer_norm import reference as layer_norm
from mlc_rwkv_world.kernels.cpu import activation
from mlc_rwkv_world.kernels.cpu import channel_mix as channel_mix_cpu
from mlc_rwkv_world.kernels.cpu import mix as mix_cpu
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.cpu.packed_weight import packed
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.versions.rwkv4.cpu import time_mix as time_mix_cpu
from mlc_rwkv_world.versions.rwkv4.reference import wkv

pytestmark = pytest.mark.slow

F32, U32, U16 = "float32", "uint32", "uint16"
# So many blocks of rows that a task reads two or four streams; a state of two layers.
D, HIDDEN, LAYERS, LAYER, EPS, FACTOR = 512, 1024, 2, 1, 1e-5, 0.5
# Rows of a layer's state: previous x, a, b, p, previous x.
ROWS_OF_STATE, ROW = 5, 4
ROWS, LENGTHS = 5, [3, 1, 7]
# How many blends kernels are tried for.
BLENDS = (1, 2, 3, 6)
# By arithmetic, of root mean squares: float32's rounding, and results rounded to 8 bits each or
# to bfloat16.
RATIO = {FLOAT32: 2e-6, INT8: 8e-3, BFLOAT16: 2e-3}
Spec = tuple[Any, ...]


QUANTIZED = Stored.symmetric(4, "float16", group=32)


def _of_previous(count: int) -> bool:
    """Whether so many ratios are those of the previous row, as RWKV-7's are."""
    return count in (1, 6)


def _blend(now: Array, before: Array, ratio: Array, count: int) -> Array:
    one, other = (before, now) if _of_previous(count) else (now, before)
    return np.asarray(one * ratio.astype(float) + other * (1 - ratio.astype(float)))


def _form(arithmetic: str) -> Stored:
    """How the weights lie."""
    stored = QUANTIZED if arithmetic == INT8 else Stored(0, "float16")
    form = packed(stored, narrow=arithmetic == BFLOAT16)
    assert form is not None
    return form


def _cases(arithmetic: str, rows: int | str) -> dict[str, Case]:
    form = _form(arithmetic)
    kind = inputs_of(form, arithmetic)

    def weight(n: int, k: int) -> Spec:
        (spec,) = specs(form, n, k)
        return spec

    def given(k: int) -> Spec:
        ty = input_type(rows, k, kind)
        return (*ty.shape, ty.dtype)

    row, vector = (rows, D, F32), (D, F32)
    pool = ("s", LAYERS, ROWS_OF_STATE, D, F32)
    state, batch = [pool, (rows, 2, "int32")], [pool, ("b", 2, "int32")]
    offsets, square = ("o", "int32"), weight(D, D)
    norm, inputs = partial(mix_cpu.norm_mix, eps=EPS), [given(D)] * 3
    cases: dict[str, Case] = {
        f"norm{count}": (
            partial(norm, of_previous=_of_previous(count)),
            [row, *[vector] * (2 + count), *state],
            [given(D)] * count,
        )
        for count in BLENDS
    }
    cases |= {
        "norm_kept": (
            partial(norm, of_previous=True, keeps=True),
            [row, *[vector] * 3, *state],
            [given(D), row, row],
        ),
        "step": (
            time_mix_cpu.time_mix,
            [*inputs, *[square] * 3, vector, vector, *state],
            inputs[:1],
        ),
        "key": (
            channel_mix_cpu.key_receptance,
            [*inputs[:2], weight(HIDDEN, D), square],
            [given(HIDDEN), row],
        ),
        "only_key": (channel_mix_cpu.key, [given(D), weight(HIDDEN, D)], [given(HIDDEN)]),
        "residual": (channel_mix_cpu.residual, [given(D), square, row], [row]),
        "gated": (
            partial(channel_mix_cpu.gated_residual, factor=FACTOR),
            [given(HIDDEN), weight(D, HIDDEN), row, row],
            [row],
        ),
        "dense": (channel_mix_cpu.residual, [given(HIDDEN), weight(D, HIDDEN), row], [row]),
        "sparse": (
            channel_mix_cpu.sparse_residual,
            [given(HIDDEN), weight(D, HIDDEN), row],
            [row],
        ),
    }
    if rows != 1:
        cases |= {
            f"shift{count}": (
                partial(mix_cpu.shift_mix, of_previous=_of_previous(count)),
                [row, offsets, *[vector] * count, *batch],
                [given(D)] * count,
            )
            for count in BLENDS
        }
        cases |= {
            "shift_kept": (
                partial(mix_cpu.shift_mix, of_previous=True, keeps=True),
                [row, offsets, vector, *batch],
                [given(D), row],
            ),
            "products": (time_mix_cpu.products, [*inputs, *[square] * 3], [row] * 3),
            "recurrence": (
                time_mix_cpu.recurrence,
                [row, row, row, vector, vector, offsets, *batch],
                inputs[:1],
            ),
        }
    # Every weight is stored alike.
    weights = {square, weight(HIDDEN, D), weight(D, HIDDEN)}
    stored = {name: [form] * sum(arg in weights for arg in case[1]) for name, case in cases.items()}
    return {
        f"{name}_{arithmetic}_{rows}": (told(build, *stored[name], inputs=kind), args, outs)
        for name, (build, args, outs) in cases.items()
    }


class _Pool:
    """A pool before and after a kernel, with slots in no order, of which one has no part in it."""

    def __init__(self, before: Array, slots: Array) -> None:
        self.before, self.slots = before, slots.astype(np.int32)
        self.after = tvm.runtime.tensor(before)

    def read(self) -> Array:
        """What the layer's rows were, [B, R, D]."""
        rows: Array = self.before[self.slots[:, 0], LAYER]
        return rows

    def written(self, *rows: int) -> list[Array]:
        """What these rows are now, [B, D] each; nothing else has changed."""
        after, expected = self.after.numpy(), self.before.copy()
        for row in rows:
            expected[self.slots[:, 1], LAYER, row] = after[self.slots[:, 1], LAYER, row]
        np.testing.assert_array_equal(after, expected)
        return [after[self.slots[:, 1], LAYER, row] for row in rows]


class _Bench:
    """Kernels, and float64 twins of what they are given."""

    def __init__(self, kernels: Kernels, arithmetic: str, rows: int | str) -> None:
        self.kernels, self.arithmetic, self.rows = kernels, arithmetic, rows
        self.count = 1 if rows == 1 else ROWS
        self.rng = np.random.default_rng(7)

    def floats(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(F32)

    def ratios(self, count: int) -> list[Array]:
        return [self.rng.uniform(0, 1, D).astype(F32) for _ in range(count)]

    def pool(self, batch: int) -> _Pool:
        state = self.floats(2 * batch + 1, LAYERS, ROWS_OF_STATE, D)
        state[:, :, 2] = np.abs(state[:, :, 2]) + 1
        return _Pool(state, self.rng.permutation(2 * batch + 1)[: 2 * batch].reshape(batch, 2))

    def weight(self, n: int, k: int) -> tuple[Array, Array]:
        """A packed weight, and its values."""
        dense = self.floats(n, k) / np.float32(k**0.5)
        return packing.weight(dense, _form(self.arithmetic), self.kernels.target)

    def given(self, rows: int, k: int, zeros: float = 0) -> tuple[Array, Array]:
        """An input of a product, and its values, of which a share may be zero."""
        x = self.floats(rows, k)
        x[self.rng.random(x.shape) < zeros] = 0
        return packing.given(x, inputs_of(_form(self.arithmetic), self.arithmetic))

    def run(
        self, name: str, *args: Any, outs: Sequence[tuple[int, int]], floats: Sequence[int] = ()
    ) -> list[Array]:
        """The results, [rows, K] each: those of `floats` as such, others are inputs of products."""
        given: dict[str, Callable[[int, int], tuple[tuple[int, ...], str]]] = {
            INT8: lambda rows, k: ((rows, k // 32, activation.RECORD), U32),
            BFLOAT16: lambda rows, k: ((rows, k), U16),
            FLOAT32: lambda rows, k: ((rows, k), F32),
        }
        kinds = [
            given[FLOAT32 if i in floats else self.arithmetic](*shape)
            for i, shape in enumerate(outs)
        ]
        found = self.kernels(f"{name}_{self.arithmetic}_{self.rows}", *args, outs=kinds)
        return [packing.values(out) for out in found]

    def close(self, found: Array, exact: Array, ratio: float | None = None) -> None:
        assert error_ratio(found, exact) < (ratio or RATIO[self.arithmetic])


@pytest.fixture(scope="module", params=RATIO)
def arithmetic(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernels(arithmetic: str, compiled: Callable[[Mapping[str, Case]], Kernels]) -> Kernels:
    if arithmetic == INT8 and not compiled({}).multiplies_bytes:
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    return compiled(_cases(arithmetic, 1) | _cases(arithmetic, "m"))


@pytest.fixture(params=[1, "m"])
def bench(request: pytest.FixtureRequest, kernels: Kernels, arithmetic: str) -> _Bench:
    return _Bench(kernels, arithmetic, request.param)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _offsets() -> Array:
    return np.cumsum([0, *LENGTHS]).astype(np.int32)


@pytest.mark.parametrize("count", BLENDS)
def test_norm_mix(bench: _Bench, count: int) -> None:
    x, weight, bias = bench.floats(bench.count, D) + 3, bench.floats(D), bench.floats(D)
    ratios, pool = bench.ratios(count), bench.pool(bench.count)
    args = [x, weight, bias, *ratios, pool.after, pool.slots, LAYER, ROW]
    outs = bench.run(f"norm{count}", *args, outs=[(bench.count, D)] * count)
    normal = layer_norm(x.astype(float), weight.astype(float), bias.astype(float), EPS)
    for out, ratio in zip(outs, ratios, strict=True):
        bench.close(out, _blend(normal, pool.read()[:, ROW], ratio, count))
    bench.close(pool.written(ROW)[0], normal, RATIO[FLOAT32])


@pytest.mark.parametrize("count", BLENDS)
def test_shift_mix(kernels: Kernels, arithmetic: str, count: int) -> None:
    bench, tokens = _Bench(kernels, arithmetic, "m"), sum(LENGTHS)
    x, ratios, pool = bench.floats(tokens, D), bench.ratios(count), bench.pool(len(LENGTHS))
    args = [x, _offsets(), *ratios, pool.after, pool.slots, LAYER, ROW]
    outs = bench.run(f"shift{count}", *args, outs=[(tokens, D)] * count)
    before = np.roll(x, 1, axis=0)
    before[_offsets()[:-1]] = pool.read()[:, ROW]
    for out, ratio in zip(outs, ratios, strict=True):
        bench.close(out, _blend(x.astype(float), before, ratio, count))
    np.testing.assert_array_equal(pool.written(ROW)[0], x[_offsets()[1:] - 1])


def test_norm_mix_keeps_its_rows(bench: _Bench) -> None:
    x, weight, bias = bench.floats(bench.count, D) + 3, bench.floats(D), bench.floats(D)
    (ratio,), pool = bench.ratios(1), bench.pool(bench.count)
    args = [x, weight, bias, ratio, pool.after, pool.slots, LAYER, ROW]
    outs = [(bench.count, D)] * 3
    blend, now, before = bench.run("norm_kept", *args, outs=outs, floats=[1, 2])
    normal = layer_norm(x.astype(float), weight.astype(float), bias.astype(float), EPS)
    bench.close(blend, _blend(normal, pool.read()[:, ROW], ratio, 1))
    bench.close(now, normal, RATIO[FLOAT32])
    np.testing.assert_array_equal(before, pool.read()[:, ROW])
    np.testing.assert_array_equal(now, pool.written(ROW)[0])


def test_shift_mix_keeps_the_rows_before(kernels: Kernels, arithmetic: str) -> None:
    bench, tokens = _Bench(kernels, arithmetic, "m"), sum(LENGTHS)
    x, (ratio,), pool = bench.floats(tokens, D), bench.ratios(1), bench.pool(len(LENGTHS))
    args = [x, _offsets(), ratio, pool.after, pool.slots, LAYER, ROW]
    blend, kept = bench.run("shift_kept", *args, outs=[(tokens, D)] * 2, floats=[1])
    before = np.roll(x, 1, axis=0)
    before[_offsets()[:-1]] = pool.read()[:, ROW]
    bench.close(blend, _blend(x.astype(float), before, ratio, 1))
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(pool.written(ROW)[0], x[_offsets()[1:] - 1])


def test_time_mix_of_a_step(bench: _Bench) -> None:
    inputs = [bench.given(bench.count, D) for _ in range(3)]
    weights = [bench.weight(D, D) for _ in range(3)]
    decay, first, pool = bench.floats(D) - 1, bench.floats(D), bench.pool(bench.count)
    stored = [*(x for x, _ in inputs), *(w for w, _ in weights)]
    args = [*stored, decay, first, pool.after, pool.slots, LAYER]
    (gated,) = bench.run("step", *args, outs=[(bench.count, D)])
    k, v, r = (x @ w.T for (_, x), (_, w) in zip(inputs, weights, strict=True))
    rows = pool.read().astype(float)
    offsets = np.arange(bench.count + 1)
    w, u = -np.exp(decay.astype(float)), first.astype(float)
    a, b, p = rows[:, 1:4].swapaxes(0, 1)
    y, *new = wkv(k, v, w, u, a, b, p, offsets)
    bench.close(gated, _sigmoid(r) * y)
    for found, exact in zip(pool.written(1, 2, 3), new, strict=True):
        bench.close(found, exact, 5e-6)


def test_products_and_recurrence_of_prompts(kernels: Kernels, arithmetic: str) -> None:
    bench, tokens = _Bench(kernels, arithmetic, "m"), sum(LENGTHS)
    inputs = [bench.given(tokens, D) for _ in range(3)]
    weights = [bench.weight(D, D) for _ in range(3)]
    stored = [*(x for x, _ in inputs), *(w for w, _ in weights)]
    found = bench.run("products", *stored, outs=[(tokens, D)] * 3, floats=[0, 1, 2])
    exact = [x @ w.T for (_, x), (_, w) in zip(inputs, weights, strict=True)]
    exact[2] = _sigmoid(exact[2])
    for out, wanted in zip(found, exact, strict=True):
        bench.close(out, wanted, RATIO[FLOAT32])
    decay, first, pool = bench.floats(D) - 1, bench.floats(D), bench.pool(len(LENGTHS))
    args = [*found, decay, first, _offsets(), pool.after, pool.slots, LAYER]
    (gated,) = bench.run("recurrence", *args, outs=[(tokens, D)])
    k, v, r = (out.astype(float) for out in found)
    rows = pool.read().astype(float)
    w, u = -np.exp(decay.astype(float)), first.astype(float)
    a, b, p = rows[:, 1:4].swapaxes(0, 1)
    y, *new = wkv(k, v, w, u, a, b, p, _offsets())
    bench.close(gated, r * y)
    for out, wanted in zip(pool.written(1, 2, 3), new, strict=True):
        bench.close(out, wanted, 5e-6)


def test_key_and_receptance(bench: _Bench) -> None:
    (xk, k), (xr, r) = bench.given(bench.count, D), bench.given(bench.count, D)
    (wk, key), (wr, gate) = bench.weight(HIDDEN, D), bench.weight(D, D)
    outs = bench.run(
        "key", xk, xr, wk, wr, outs=[(bench.count, HIDDEN), (bench.count, D)], floats=[1]
    )
    bench.close(outs[0], np.square(np.maximum(k @ key.T, 0)))
    bench.close(outs[1], _sigmoid(r @ gate.T), RATIO[FLOAT32])


def test_key_alone(bench: _Bench) -> None:
    (x, exact), (weight, values) = bench.given(bench.count, D), bench.weight(HIDDEN, D)
    (out,) = bench.run("only_key", x, weight, outs=[(bench.count, HIDDEN)])
    bench.close(out, np.square(np.maximum(exact @ values.T, 0)))


def test_residual_products(bench: _Bench) -> None:
    (x, exact), (weight, values) = bench.given(bench.count, D), bench.weight(D, D)
    before, gate = bench.floats(bench.count, D), bench.floats(bench.count, D)
    (after,) = bench.run("residual", x, weight, before, outs=[(bench.count, D)], floats=[0])
    bench.close(after, before + exact @ values.T, RATIO[FLOAT32])
    (x, exact), (weight, values) = bench.given(bench.count, HIDDEN), bench.weight(D, HIDDEN)
    (after,) = bench.run("gated", x, weight, gate, before, outs=[(bench.count, D)], floats=[0])
    bench.close(after, (before + gate * (exact @ values.T)) * FACTOR, RATIO[FLOAT32])


@pytest.mark.parametrize("zeros", [0, 0.5, 0.95, 1])
def test_columns_that_zeros_leave_out_change_no_bit(bench: _Bench, zeros: float) -> None:
    (x, exact), (weight, values) = bench.given(bench.count, HIDDEN, zeros), bench.weight(D, HIDDEN)
    before, outs = bench.floats(bench.count, D), [(bench.count, D)]
    (found,) = bench.run("sparse", x, weight, before, outs=outs, floats=[0])
    bench.close(found, before + exact @ values.T, RATIO[FLOAT32])
    (dense,) = bench.run("dense", x, weight, before, outs=outs, floats=[0])
    np.testing.assert_array_equal(found, dense)
    if bench.arithmetic == FLOAT32:
        x[0, 7] = np.nan
        (found,) = bench.run("sparse", x, weight, before, outs=outs, floats=[0])
        assert np.isnan(found[0]).all()
