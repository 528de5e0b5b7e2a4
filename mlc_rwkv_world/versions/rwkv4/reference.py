"""RWKV-4 in NumPy: what the model means, value by value, in the precision that is asked for.

Formulas follow BlinkDL's reference, RWKV-LM `RWKV-v4neo`; types and casts follow the model that is
compiled. T tokens of B sequences lie one after another: sequence b owns the rows
`offsets[b] .. offsets[b + 1]`. The rows of one layer of the state are [B, 5, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels.formulas import last_rows, sigmoid, token_shift
from mlc_rwkv_world.versions import ends
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.values import Carried, Value, Values
from mlc_rwkv_world.versions.weights import Weights

if TYPE_CHECKING:
    from mlc_rwkv_world.model.config import ModelConfig

Array = NDArray[Any]

# Rows of the state of one layer: previous inputs of the two mixes, and the recurrence's
# numerator a, denominator b and exponent p.
ATT_X, ATT_A, ATT_B, ATT_P, FFN_X = range(5)

first, last = ends.first, ends.last


def wkv(
    k: Array, v: Array, w: Array, u: Array, a: Array, b: Array, p: Array, offsets: Array
) -> tuple[Array, Array, Array, Array]:
    """The recurrence, see `versions.rwkv4.wkv`: the output [T, D], and a, b and p after it.

    k, v: [T, D]; w (-exp(time_decay)), u (time_first): [D]; a, b, p: [B, D]. Computes in k's dtype.
    """
    y = np.empty_like(k)
    a, b, p = a.copy(), b.copy(), p.copy()
    for s, (begin, end) in enumerate(pairwise(offsets)):
        for t in range(begin, end):
            q = np.maximum(p[s], u + k[t])
            e1, e2 = np.exp(p[s] - q), np.exp(u + k[t] - q)
            y[t] = (e1 * a[s] + e2 * v[t]) / (e1 * b[s] + e2)
            q = np.maximum(p[s] + w, k[t])
            e1, e2 = np.exp(p[s] + w - q), np.exp(k[t] - q)
            a[s], b[s], p[s] = e1 * a[s] + e2 * v[t], e1 * b[s] + e2, q
    return y, a, b, p


def mix(x: Array, previous: Array, ratio: Array, precision: Precision) -> Array:
    """x and the rows before, blended by `ratio` [D]: what a product reads."""
    mixed = x * ratio + previous * (1 - ratio)
    return np.asarray(mixed, precision.narrow)


def time_mix(
    x: Array,
    values: Carried,
    weights: Weights,
    block: str,
    rows: Array,
    offsets: Array,
    config: ModelConfig,
    precision: Precision,
) -> Values[tuple[Array, Carried]]:
    """`Wo (sigmoid(Wr xr) * wkv(Wk xk, Wv xv))` of the normalized x; replaces four rows."""
    layer = f"{block}.attention"
    narrow, wide = precision.narrow, precision.wide
    previous = token_shift(x, rows[:, ATT_X], offsets)
    yield Value("ln1 token_shift", previous)
    mixed = []
    for part in ("key", "value", "receptance"):
        ratio = precision.vector(weights, f"{layer}.time_mix_{part}")
        mixed.append(mix(x, previous, ratio, precision))
        yield Value(f"attention.time_mix_{part}", mixed[-1])
    xk, xv, xr = mixed
    keys = wide if config.float32_keys else narrow
    k = precision.product(xk, weights, f"{layer}.key.weight", keys)
    yield Value("attention.key", k)
    v = precision.product(xv, weights, f"{layer}.value.weight", keys)
    yield Value("attention.value", v)
    r = precision.product(xr, weights, f"{layer}.receptance.weight")
    yield Value("attention.receptance", r)
    r = sigmoid(r.astype(wide, copy=False))
    yield Value("attention.receptance sigmoid", r)
    w = -np.exp(precision.vector(weights, f"{layer}.time_decay"))
    u = precision.vector(weights, f"{layer}.time_first")
    a, b, p = (rows[:, row] for row in (ATT_A, ATT_B, ATT_P))
    k, v = (part.astype(wide, copy=False) for part in (k, v))
    y, a, b, p = wkv(k, v, w, u, a, b, p, offsets)
    yield Value("attention.wkv", y)
    for row, after in ((ATT_X, last_rows(x, offsets)), (ATT_A, a), (ATT_B, b), (ATT_P, p)):
        rows[:, row] = after
    gated = (r * y).astype(narrow, copy=False)
    yield Value("attention.wkv multiply", gated)
    out = precision.product(gated, weights, f"{layer}.output.weight")
    yield Value("attention.output", out)
    return out, values


def channel_mix(
    x: Array,
    weights: Weights,
    block: str,
    rows: Array,
    offsets: Array,
    precision: Precision,
    mixes: Sequence[str] = ("time_mix_key", "time_mix_receptance"),
    *,
    of_previous: bool = False,
) -> Values[Array]:
    """`sigmoid(Wr xr) * (Wv relu(Wk xk)^2)` of the normalized x; replaces the last row.

    RWKV-5 and 6 have it too. `mixes` names the ratios of key and receptance, which are those of the
    previous input if `of_previous`.
    """
    layer = f"{block}.feed_forward"
    previous = token_shift(x, rows[:, -1], offsets)
    yield Value("ln2 token_shift", previous)
    one, other = (previous, x) if of_previous else (x, previous)
    mixed = []
    for name in mixes:
        ratio = precision.vector(weights, f"{layer}.{name}")
        mixed.append(mix(one, other, ratio, precision))
        yield Value(f"feed_forward.{name}", mixed[-1])
    xk, xr = mixed
    rows[:, -1] = last_rows(x, offsets)
    r = precision.product(xr, weights, f"{layer}.receptance.weight")
    yield Value("feed_forward.receptance", r)
    r = sigmoid(r)
    yield Value("feed_forward.receptance sigmoid", r)
    out = r * (yield from ends.squared_relu(xk, weights, layer, precision))
    yield Value("feed_forward.value multiply", out)
    return out


block = partial(ends.branches, time_mix=time_mix, channel_mix=channel_mix)
