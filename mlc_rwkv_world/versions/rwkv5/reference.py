"""RWKV-5 in NumPy: what the model means, value by value, in the precision that is asked for.

Formulas follow BlinkDL's inference package `rwkv` 0.8.32; types and casts follow the model that is
compiled. T tokens of B sequences lie one after another: sequence b owns the rows
`offsets[b] .. offsets[b + 1]`. A head has N of the D channels. The rows of one layer of the state
are [B, N + 2, D]: the previous input of the time mix; the heads' matrices, [D / N, N, N] as (head,
key channel, value channel); the previous input of the channel mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels.formulas import head_norm, last_rows, sigmoid, token_shift
from mlc_rwkv_world.versions import ends
from mlc_rwkv_world.versions.matrices import head_epsilon
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.rwkv4.reference import channel_mix, mix
from mlc_rwkv_world.versions.values import Carried, Value, Values
from mlc_rwkv_world.versions.weights import Weights

if TYPE_CHECKING:
    from mlc_rwkv_world.model.config import ModelConfig

Array = NDArray[Any]

first, last = ends.first, ends.last

PRODUCTS = ("receptance", "key", "value", "gate")


def wkv(
    r: Array, w: Array, k: Array, v: Array, u: Array, state: Array, offsets: Array
) -> tuple[Array, Array]:
    """The recurrence: the output [T, D], and the state [B, N, D] after it.

    r, k, v: [T, D]; w (the decay, in (0, 1)): [D], or [T, D]; u (the bonus): [D]. With S [key,
    value] of a head: y = r (S + u k v),  S <- diag(w) S + k v. Computes in r's dtype.
    """
    size = state.shape[1]
    y, heads = np.empty_like(r), r.shape[1] // size
    w, u = np.broadcast_to(w, r.shape), u.reshape(heads, size)
    after = state.reshape(len(state), heads, size, size).copy()
    for s, (begin, end) in enumerate(pairwise(offsets)):
        for t in range(begin, end):
            rt, wt, kt, vt = (x[t].reshape(heads, size) for x in (r, w, k, v))
            matrix, new = after[s], kt[:, :, None] * vt[:, None]
            y[t] = np.einsum("hj,hji->hi", rt, matrix + u[:, :, None] * new).reshape(-1)
            matrix *= wt[:, :, None]
            matrix += new
    return y, after.reshape(state.shape)


def after_mixes(
    mixed: Mapping[str, Array],
    decay: Array,
    weights: Weights,
    layer: str,
    rows: Array,
    offsets: Array,
    config: ModelConfig,
    precision: Precision,
) -> Values[Array]:
    """What the time mix `layer` makes of its inputs, by the product that reads them.

    `decay` is time_decay [D] or each token's [T, D], in `wide`; replaces the heads' matrices.
    """
    wide = precision.wide
    given = wide if config.float32_keys else precision.narrow
    found = {}
    for name, x in mixed.items():
        kind = precision.narrow if name == "gate" else given
        out = precision.product(x, weights, f"{layer}.{name}.weight", kind)
        yield Value(f"attention.{name}", out)
        found[name] = out.astype(wide, copy=False)
    w = np.exp(-np.exp(decay)).astype(wide, copy=False)
    yield Value("attention.time_decay decay", np.atleast_2d(w))
    u = precision.vector(weights, f"{layer}.time_first").reshape(-1)
    r, k, v = (found[name] for name in PRODUCTS[:3])
    y, rows[:, 1:-1] = wkv(r, w, k, v, u, rows[:, 1:-1], offsets)
    yield Value("attention.wkv", y)
    weight, bias = (precision.vector(weights, f"{layer}.ln_x.{p}") for p in ("weight", "bias"))
    y = head_norm(y, weight, bias, config.head_size, head_epsilon(config))
    yield Value("attention.ln_x", y)
    if "gate" in found:
        gate = found["gate"] * sigmoid(found["gate"])
        yield Value("attention.gate silu", gate)
        y = y * gate
    gated = y.astype(precision.narrow, copy=False)
    yield Value("attention.ln_x multiply", gated)
    out = precision.product(gated, weights, f"{layer}.output.weight")
    yield Value("attention.output", out)
    return out


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
    """`Wo (norm(r S) * silu(Wg xg))` of the normalized x; replaces all rows but the last."""
    layer = f"{block}.attention"
    previous = token_shift(x, rows[:, 0], offsets)
    yield Value("ln1 token_shift", previous)
    mixed = {}
    for name in PRODUCTS if config.attention_gate else PRODUCTS[:3]:
        ratio = precision.vector(weights, f"{layer}.time_mix_{name}")
        mixed[name] = mix(x, previous, ratio, precision)
        yield Value(f"attention.time_mix_{name}", mixed[name])
    rows[:, 0] = last_rows(x, offsets)
    decay = precision.vector(weights, f"{layer}.time_decay").reshape(-1)
    out = yield from after_mixes(mixed, decay, weights, layer, rows, offsets, config, precision)
    return out, values


block = partial(ends.branches, time_mix=time_mix, channel_mix=channel_mix)
