"""RWKV-7 in NumPy: what the model means, value by value, in the precision that is asked for.

Formulas follow BlinkDL's inference package `rwkv` 0.8.32 and RWKV-LM `RWKV-v7`; types and casts
follow the model that is compiled. T tokens of B sequences lie one after another: sequence b owns
the rows `offsets[b] .. offsets[b + 1]`. A head has N of the D channels. The rows of one layer of
the state are [B, N + 2, D]: the previous input of the time mix; the heads' matrices, [D / N, N, N]
as (head, key channel, value channel); the previous input of the channel mix.

What passes from block to block is the residual and, from block 0 on, block 0's value [T, D].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.formulas import last_rows, sigmoid, token_shift
from mlc_rwkv_world.versions import ends
from mlc_rwkv_world.versions.matrices import head_epsilon
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.values import Carried, Value, Values
from mlc_rwkv_world.versions.weights import Weights

if TYPE_CHECKING:
    from mlc_rwkv_world.model.config import ModelConfig

Array = NDArray[Any]

first, last = ends.first, ends.last

# A channel keeps at least e^-e^-0.5 = 0.545 of what it holds.
DECAY_RATE = float(np.exp(-0.5))
# Below this length a head's key is not stretched to one.
LEAST_NORM = 1e-12

_ACTS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "sigmoid": sigmoid}


def keys(k: Array, a: Array, k_k: Array, k_a: Array, head_size: int) -> tuple[Array, Array, Array]:
    """The key that is written, the one that is removed, and what is written in its place.

    k, a: [T, D]; k_k, k_a: [D]. All three [T, D]: k (1 + (a - 1) k_a); kk, which is k k_k with each
    head's length one; and kk a. Computes in k's dtype.
    """
    removed = (k * k_k).reshape(len(k), -1, head_size)
    length = np.sqrt(np.square(removed).sum(axis=-1, keepdims=True))
    removed = (removed / np.maximum(length, LEAST_NORM)).reshape(k.shape)
    return k * (1 + (a - 1) * k_a), removed, removed * a


def wkv(
    r: Array, w: Array, k: Array, v: Array, kk: Array, b: Array, state: Array, offsets: Array
) -> tuple[Array, Array]:
    """The recurrence: the output [T, D], and the state [B, N, D] after it.

    r, w (the decay, in (0, 1)), k, v, kk, b: [T, D]. With S [key, value] of a head:
    S <- diag(w) S - b (kk S) + k v,  y = r S. Computes in r's dtype.
    """
    size = state.shape[1]
    y, heads = np.empty_like(r), r.shape[1] // size
    after = state.reshape(len(state), heads, size, size).copy()
    for s, (begin, end) in enumerate(pairwise(offsets)):
        for t in range(begin, end):
            rt, wt, kt, vt, kkt, bt = (x[t].reshape(heads, size) for x in (r, w, k, v, kk, b))
            matrix = after[s]
            old = np.einsum("hj,hji->hi", kkt, matrix)
            matrix *= wt[:, :, None]
            matrix -= bt[:, :, None] * old[:, None]
            matrix += kt[:, :, None] * vt[:, None]
            y[t] = np.einsum("hj,hji->hi", rt, matrix).reshape(-1)
    return y, after.reshape(state.shape)


def head_norm(
    y: Array,
    r: Array,
    k: Array,
    v: Array,
    r_k: Array,
    weight: Array,
    bias: Array,
    eps: float,
) -> Array:
    """Each head of y normalized, and v as often as r agrees with k: [T, D].

    y, r, k, v: [T, D]; r_k: [H, N]; weight, bias: [D]. Computes in y's dtype.
    """
    heads = (len(y), *r_k.shape)
    normal = formulas.head_norm(y, weight, bias, r_k.shape[1], eps)
    agreement = (r * k).reshape(heads) * r_k
    bonus = agreement.sum(axis=-1, keepdims=True) * v.reshape(heads)
    return np.asarray(normal + bonus.reshape(y.shape))


def shifted(x: Array, previous: Array, share: Array, precision: Precision) -> Array:
    """x and the rows before, of which `share` [D] is taken: what a product reads."""
    return np.asarray(x * (1 - share) + previous * share, precision.narrow)


def _low_rank(
    x: Array,
    weights: Weights,
    layer: str,
    name: str,
    precision: Precision,
    act: str = "",
) -> Values[Array]:
    """`W2 act(W1 x)` in `wide`."""
    given = precision.wide if act else precision.narrow
    hidden = precision.product(x, weights, f"{layer}.{name}1.weight", given)
    yield Value(f"attention.{name}1", hidden)
    if act:
        hidden = _ACTS[act](hidden).astype(precision.narrow, copy=False)
        yield Value(f"attention.{name}1 {act}", hidden)
    out = precision.product(hidden, weights, f"{layer}.{name}2.weight", precision.wide)
    yield Value(f"attention.{name}2", out)
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
    """The branch of the normalized x, and block 0's value; replaces all rows but the last."""
    layer = f"{block}.attention"
    wide, size = precision.wide, config.head_size

    def vector(name: str) -> Array:
        return precision.vector(weights, f"{layer}.{name}")

    previous = token_shift(x, rows[:, 0], offsets)
    yield Value("ln1 token_shift", previous)
    mixed = {}
    for part in "rwkvag":
        mixed[part] = shifted(x, previous, vector(f"x_{part}"), precision)
        yield Value(f"attention.x_{part}", mixed[part])
    rows[:, 0] = last_rows(x, offsets)
    given = wide if config.float32_keys else precision.narrow
    found = []
    for part, name in (("r", "receptance"), ("k", "key"), ("v", "value")):
        out = precision.product(mixed[part], weights, f"{layer}.{name}.weight", given)
        yield Value(f"attention.{name}", out)
        found.append(out.astype(wide, copy=False))
    r, k, v = found
    w = yield from _low_rank(mixed["w"], weights, layer, "w", precision, "tanh")
    w = np.exp(-DECAY_RATE * sigmoid(vector("w0") + w)).astype(wide, copy=False)
    yield Value("attention.w0 decay", w)
    a = yield from _low_rank(mixed["a"], weights, layer, "a", precision)
    a = sigmoid(vector("a0") + a)
    yield Value("attention.a0 sigmoid", a)
    if not values:
        values = (v,)
    else:
        share = yield from _low_rank(mixed["v"], weights, layer, "v", precision)
        share = sigmoid(vector("v0") + share)
        yield Value("attention.v0 sigmoid", share)
        v = v + (values[0] - v) * share
        yield Value("attention.value residual", v)
    g = yield from _low_rank(mixed["g"], weights, layer, "g", precision, "sigmoid")
    k, kk, b = keys(k, a, vector("k_k"), vector("k_a"), size)
    yield Value("attention.k_a key", k)
    yield Value("attention.k_k key", kk)
    y, rows[:, 1:-1] = wkv(r, w, k, v, kk, b, rows[:, 1:-1], offsets)
    yield Value("attention.wkv", y)
    norm = (vector("ln_x.weight"), vector("ln_x.bias"))
    y = head_norm(y, r, k, v, vector("r_k"), *norm, head_epsilon(config))
    yield Value("attention.ln_x", y)
    gated = (y * g).astype(precision.narrow, copy=False)
    yield Value("attention.ln_x multiply", gated)
    out = precision.product(gated, weights, f"{layer}.output.weight")
    yield Value("attention.output", out)
    return out, values


def channel_mix(
    x: Array, weights: Weights, block: str, rows: Array, offsets: Array, precision: Precision
) -> Values[Array]:
    """`Wv relu(Wk xk)^2` of the normalized x; replaces the last row."""
    layer = f"{block}.feed_forward"
    previous = token_shift(x, rows[:, -1], offsets)
    yield Value("ln2 token_shift", previous)
    rows[:, -1] = last_rows(x, offsets)
    xk = shifted(x, previous, precision.vector(weights, f"{layer}.x_k"), precision)
    yield Value("feed_forward.x_k", xk)
    return (yield from ends.squared_relu(xk, weights, layer, precision))


block = partial(ends.branches, time_mix=time_mix, channel_mix=channel_mix)
