"""RWKV-6 in NumPy: RWKV-5 with mixes and decays that are made from the input.

Formulas follow BlinkDL's inference package `rwkv` 0.8.32; see `versions.rwkv5.reference`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.kernels.formulas import last_rows, token_shift
from mlc_rwkv_world.versions import ends
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.rwkv4.reference import channel_mix as gated_channel_mix
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS, after_mixes
from mlc_rwkv_world.versions.values import Carried, Value, Values
from mlc_rwkv_world.versions.weights import Weights

if TYPE_CHECKING:
    from mlc_rwkv_world.model.config import ModelConfig

Array = NDArray[Any]

first, last = ends.first, ends.last

# The ratios of the channel mix, which are those of the previous input.
CHANNEL_MIXES = ("time_maa_k", "time_maa_r")
channel_mix = partial(gated_channel_mix, mixes=CHANNEL_MIXES, of_previous=True)


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
    narrow, wide = precision.narrow, precision.wide

    def vector(name: str) -> Array:
        return precision.vector(weights, f"{layer}.{name}").reshape(-1)

    def low_rank(x: Array, name: str) -> Values[Array]:
        """`tanh(W x)` of the type that products read."""
        hidden = precision.product(x, weights, f"{layer}.{name}.weight", wide)
        yield Value(f"attention.{name}", hidden)
        hidden = np.tanh(hidden).astype(narrow, copy=False)
        yield Value(f"attention.{name} tanh", hidden)
        return hidden

    previous = token_shift(x, rows[:, 0], offsets)
    yield Value("ln1 token_shift", previous)
    rows[:, 0] = last_rows(x, offsets)
    change = previous - x
    common = (x + change * vector("time_maa_x")).astype(narrow, copy=False)
    yield Value("attention.time_maa_x", common)
    hidden = yield from low_rank(common, "time_maa_w1")
    mixed = {}
    for letter, part in zip(MIXES, np.split(hidden, len(MIXES), axis=1), strict=True):
        share = precision.product(part, weights, f"{layer}.time_maa_w2.{letter}.weight", wide)
        yield Value(f"attention.time_maa_w2.{letter}", share)
        share = vector(f"time_maa_{letter}") + share
        mixed[letter] = (x + change * share).astype(narrow, copy=False)
        yield Value(f"attention.time_maa_{letter}", mixed[letter])
    hidden = yield from low_rank(mixed["w"], "time_decay_w1")
    decay = precision.product(hidden, weights, f"{layer}.time_decay_w2.weight", wide)
    yield Value("attention.time_decay_w2", decay)
    inputs = {name: mixed[name[0]] for name in PRODUCTS}
    out = yield from after_mixes(
        inputs, vector("time_decay") + decay, weights, layer, rows, offsets, config, precision
    )
    return out, values


block = partial(ends.branches, time_mix=time_mix, channel_mix=channel_mix)
