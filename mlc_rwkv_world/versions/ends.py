"""What the references of versions share: both ends of a model, of a block, and of a channel mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.kernels.formulas import last_rows
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.values import RESIDUAL, Carried, Value, Values
from mlc_rwkv_world.versions.weights import Weights

if TYPE_CHECKING:
    from mlc_rwkv_world.model.config import ModelConfig

Array = NDArray[Any]


def first(
    ids: Array, weights: Weights, config: ModelConfig, precision: Precision
) -> Values[Carried]:
    """Token ids [T] to the first residual [T, D]."""
    x = precision.rows(weights, "model.embeddings.weight", ids)
    yield Value("embeddings", x)
    x = precision.layer_norm(x, weights, "model.pre_ln", config.layer_norm_epsilon)
    x = x.astype(precision.narrow, copy=False)
    yield Value("pre_ln", x)
    return (x,)


class TimeMix(Protocol):
    """A block's first branch."""

    def __call__(
        self,
        x: Array,
        values: Carried,
        weights: Weights,
        block: str,
        rows: Array,
        offsets: Array,
        config: ModelConfig,
        precision: Precision,
    ) -> Values[tuple[Array, Carried]]:
        """The branch of the normalized x [T, D], and what is carried beside the residual.

        Block `block`'s weights have names such as `<block>.attention.key.weight`; replaces all rows
        but the last.
        """


class ChannelMix(Protocol):
    """A block's second branch."""

    def __call__(
        self,
        x: Array,
        weights: Weights,
        block: str,
        rows: Array,
        offsets: Array,
        precision: Precision,
    ) -> Values[Array]:
        """The branch of the normalized x [T, D]; replaces the last row."""


def branches(
    number: int,
    carried: Carried,
    weights: Weights,
    rows: Array,
    offsets: Array,
    config: ModelConfig,
    precision: Precision,
    time_mix: TimeMix,
    channel_mix: ChannelMix,
) -> Values[tuple[Carried, Array]]:
    """Block `number` around its two branches, which make it `references.Reference.block`."""
    name, eps, rows = f"model.blocks.{number}", config.epsilon(number), rows.copy()
    residual, *values = carried
    x = residual.astype(precision.narrow, copy=False)
    normal = precision.layer_norm(x, weights, f"{name}.ln1", eps)
    yield Value("ln1", normal)
    out, more = yield from time_mix(
        normal, tuple(values), weights, name, rows, offsets, config, precision
    )
    x = x + out
    yield Value("attention.output add", x)
    normal = precision.layer_norm(x, weights, f"{name}.ln2", eps)
    yield Value("ln2", normal)
    x = x + (yield from channel_mix(normal, weights, name, rows, offsets, precision))
    yield Value("feed_forward.value add", x)
    if config.halvings(number + 1) > config.halvings(number):
        x = x * precision.narrow(0.5)
        # The second product of this name.
        yield Value("feed_forward.value multiply 2", x)
    return (x, *more), rows


def squared_relu(x: Array, weights: Weights, layer: str, precision: Precision) -> Values[Array]:
    """`Wv relu(Wk x)^2` of the channel mix `layer`: x [T, D] to [T, D]."""
    k = precision.product(x, weights, f"{layer}.key.weight")
    yield Value("feed_forward.key", k)
    # As compiled code does it: what is no number becomes zero.
    k = np.fmax(k, 0)
    yield Value("feed_forward.key relu", k)
    k = np.square(k)
    yield Value("feed_forward.key square", k)
    out = precision.product(k, weights, f"{layer}.value.weight")
    yield Value("feed_forward.value", out)
    return out


def last(
    carried: Carried, weights: Weights, offsets: Array, config: ModelConfig, precision: Precision
) -> Values[Array]:
    """The last residual [T, D], of any type, to the logits [B, V] in `wide`."""
    x = last_rows(carried[0], offsets).astype(precision.wide)
    yield Value(f"{RESIDUAL} last_token", x)
    eps = config.epsilon(config.num_hidden_layers)
    x = precision.layer_norm(x, weights, "model.ln_out", eps).astype(precision.narrow, copy=False)
    yield Value("ln_out", x)
    logits = precision.product(x, weights, "head.weight", precision.wide)
    yield Value("head", logits)
    return logits
