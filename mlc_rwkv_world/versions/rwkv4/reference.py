"""RWKV-4 in NumPy: what the model means, value by value, in the precision that is asked for.

Formulas follow BlinkDL's reference, RWKV-LM `RWKV-v4neo`; types and casts follow the model that is
compiled. T tokens of B sequences lie one after another: sequence b owns the rows
`offsets[b] .. offsets[b + 1]`. The rows of one layer of the state are [B, 5, D].
"""

from __future__ import annotations

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
    weights: Weights,
    block: str,
    rows: Array,
    offsets: Array,
    precision: Precision,
    *,
    float32_keys: bool,
) -> Values[Array]:
    """`Wo (sigmoid(Wr xr) * wkv(Wk xk, Wv xv))` of the normalized x; replaces four rows.

    Block `block`'s weights have names such as `<block>.attention.key.weight`.
    """
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
    keys = wide if float32_keys else narrow
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
    return out


def channel_mix(
    x: Array, weights: Weights, block: str, rows: Array, offsets: Array, precision: Precision
) -> Values[Array]:
    """`sigmoid(Wr xr) * (Wv relu(Wk xk)^2)` of the normalized x; replaces one row."""
    layer = f"{block}.feed_forward"
    previous = token_shift(x, rows[:, FFN_X], offsets)
    yield Value("ln2 token_shift", previous)
    mixed = []
    for part in ("key", "receptance"):
        ratio = precision.vector(weights, f"{layer}.time_mix_{part}")
        mixed.append(mix(x, previous, ratio, precision))
        yield Value(f"feed_forward.time_mix_{part}", mixed[-1])
    xk, xr = mixed
    rows[:, FFN_X] = last_rows(x, offsets)
    r = precision.product(xr, weights, f"{layer}.receptance.weight")
    yield Value("feed_forward.receptance", r)
    r = sigmoid(r)
    yield Value("feed_forward.receptance sigmoid", r)
    out = r * (yield from ends.squared_relu(xk, weights, layer, precision))
    yield Value("feed_forward.value multiply", out)
    return out


def block(
    number: int,
    carried: Carried,
    weights: Weights,
    rows: Array,
    offsets: Array,
    config: ModelConfig,
    precision: Precision,
) -> Values[tuple[Carried, Array]]:
    """The residual [T, D] that enters block `number`, of any type, to what leaves it.

    Also gives the rows after the last tokens; those given stay.
    """
    name, eps, rows = f"model.blocks.{number}", config.epsilon(number), rows.copy()
    x = carried[0].astype(precision.narrow, copy=False)
    normal = precision.layer_norm(x, weights, f"{name}.ln1", eps)
    yield Value("ln1", normal)
    x = x + (
        yield from time_mix(
            normal, weights, name, rows, offsets, precision, float32_keys=config.float32_keys
        )
    )
    yield Value("attention.output add", x)
    normal = precision.layer_norm(x, weights, f"{name}.ln2", eps)
    yield Value("ln2", normal)
    x = x + (yield from channel_mix(normal, weights, name, rows, offsets, precision))
    yield Value("feed_forward.value add", x)
    if config.halvings(number + 1) > config.halvings(number):
        x = x * precision.narrow(0.5)
        # The second product of this name.
        yield Value("feed_forward.value multiply 2", x)
    return (x,), rows
