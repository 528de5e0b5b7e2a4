"""CUDA's recurrences of heads' matrices on an emulated GPU, against float64, in many orders."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from compiling import Array, Case, error_ratio
from support import cuda_emulation

from mlc_rwkv_world.versions.rwkv5 import reference as rwkv5
from mlc_rwkv_world.versions.rwkv5 import wkv as wkv5
from mlc_rwkv_world.versions.rwkv7 import reference as rwkv7
from mlc_rwkv_world.versions.rwkv7 import wkv as wkv7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

F32 = "float32"
RATIO = 2e-6
# Channels, and channels of a head, with so many orders of threads: slices of a head as published,
# and small heads.
SHAPES = {(64, 64): 2, (32, 16): 50}
# More turns than there is room for, a turn and one more, and prompts that fill none.
LENGTHS = [1, 35, 9, 3]
LAYERS, PLACES = 2, 9
SLOTS = np.array([[3, 1], [0, 2], [5, 8], [4, 4]], np.int32)
# RWKV-5's decay is a channel's, RWKV-6's a token's.
KINDS = ("5", "6", "7")


def _case(kind: str, width: int, size: int, *, step: bool, pooled: bool) -> Case:
    token, batch = ("b" if step else "t", width, F32), "b"
    vectors: list[Any] = [token] * (6 if kind == "7" else 5)
    if kind != "7":
        vectors[4] = (width, F32)
    if kind == "5":
        vectors[3] = (width, F32)
    module = wkv7 if kind == "7" else wkv5
    args = [*vectors, *([] if step else [("offsets", "int32")])]
    if pooled:
        pool = [("s", LAYERS, size + 2, width, F32), (batch, 2, "int32")]
        return partial(module.wkv_pooled, size=size), [*args, *pool], [token]
    return module.wkv, [*args, (batch, size, width, F32)], [token, (batch, size, width, F32)]


def _inputs(kind: str, width: int, size: int, tokens: int) -> list[Array]:
    rng = np.random.default_rng(width + size)
    r, k, v = rng.normal(0, 1, (3, tokens, width))
    if kind != "7":
        w = np.exp(-np.exp(rng.normal(-2, 1.5, width if kind == "5" else (tokens, width))))
        return [x.astype(F32) for x in (r, k, v, w, rng.normal(0, 0.5, width))]
    w = np.exp(-rwkv7.DECAY_RATE / (1 + np.exp(-rng.normal(0, 3, (tokens, width)))))
    a = 1 / (1 + np.exp(-rng.normal(0, 1, (tokens, width))))
    k, kk, b = rwkv7.keys(k, a, np.full(width, 0.9), np.ones(width), size)
    return [x.astype(F32) for x in (r, w, k, v, kk, b)]


def _exact(kind: str, inputs: list[Array], state: Array, offsets: Array) -> tuple[Array, Array]:
    exact = [x.astype(np.float64) for x in (*inputs, state)]
    if kind == "7":
        return partial(rwkv7.wkv, offsets=offsets)(*exact)
    r, k, v, w, u, before = exact
    return rwkv5.wkv(r, w, k, v, u, before, offsets)


WAYS = [(step, pooled) for step in (False, True) for pooled in (False, True)]


@pytest.fixture(scope="module")
def answers() -> dict[tuple[Any, ...], tuple[list[Array], list[Array]]]:
    """What each kernel gives, and the exact values: y, and matrices or the pool after it."""
    rng = np.random.default_rng(1)
    cases: dict[str, Case] = {}
    calls: list[tuple[str, Any]] = []
    keys, exact, orders = [], [], []
    for kind in KINDS:
        for width, size in SHAPES:
            state = rng.normal(0, 1, (len(LENGTHS), size, width)).astype(F32)
            state[0] = state[2] = 0
            for step, pooled in WAYS:
                lengths = [1] * len(LENGTHS) if step else LENGTHS
                offsets = np.cumsum([0, *lengths]).astype(np.int32)
                inputs = _inputs(kind, width, size, int(offsets[-1]))
                y, after = _exact(kind, inputs, state, offsets)
                given: list[Any] = [*inputs, *([] if step else [offsets])]
                outs = [(y.shape, F32)]
                if pooled:
                    pool = np.full((PLACES, LAYERS, size + 2, width), np.nan, F32)
                    pool[SLOTS[:, 0], 1, 1:-1] = state
                    given += [pool, SLOTS, 1, 1]
                    expected = pool.astype(np.float64)
                    expected[SLOTS[:, 1], 1, 1:-1] = after
                else:
                    given.append(state)
                    outs.append((state.shape, F32))
                    expected = after
                name = f"rwkv{kind}_{width}_{size}_{step:d}{pooled:d}"
                cases[name] = _case(kind, width, size, step=step, pooled=pooled)
                calls.append((name, (given, outs)))
                keys.append((kind, width, size, step, pooled))
                exact.append([y, expected])
                orders.append(SHAPES[width, size])
    found = cuda_emulation.run("emulated:compute_in_orders", cases, calls, orders)
    results = {}
    for key, got, wanted in zip(keys, found, exact, strict=True):
        # The pool is changed where it is, before the slots; matrices come after y.
        results[key] = ([got[0], got[-2] if key[-1] else got[1]], wanted)
    return results


@pytest.mark.parametrize("step, pooled", WAYS, ids=["prompt", "prompt_pool", "step", "step_pool"])
@pytest.mark.parametrize("width, size", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrence(
    answers: dict[Any, Any], kind: str, width: int, size: int, step: bool, pooled: bool
) -> None:
    got, wanted = answers[kind, width, size, step, pooled]
    for result, exact in zip(got, wanted, strict=True):
        written = np.isfinite(exact)
        # What nobody was to write stays as it was.
        np.testing.assert_array_equal(np.isfinite(result), written)
        assert error_ratio(result[written], exact[written]) < RATIO
