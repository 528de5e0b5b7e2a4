"""What the reference of a version is, a module `versions/rwkv<n>/reference.py`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.precision import Precision
from mlc_rwkv_world.versions.values import Carried, Values, finish
from mlc_rwkv_world.versions.weights import Weights

Array = NDArray[Any]


class Reference(Protocol):
    """A model in three parts. T tokens of B sequences lie one after another, see `offsets`."""

    def first(
        self, ids: Array, weights: Weights, config: ModelConfig, precision: Precision
    ) -> Values[Carried]:
        """Token ids [T] to what enters block 0."""

    def block(
        self,
        number: int,
        carried: Carried,
        weights: Weights,
        rows: Array,
        offsets: Array,
        config: ModelConfig,
        precision: Precision,
    ) -> Values[tuple[Carried, Array]]:
        """What enters a block, of any type, to what leaves it; its rows [B, R, D] to those after.

        Sequence b owns the rows `offsets[b] .. offsets[b + 1]` of what is carried.
        """

    def last(
        self,
        carried: Carried,
        weights: Weights,
        offsets: Array,
        config: ModelConfig,
        precision: Precision,
    ) -> Values[Array]:
        """What leaves the last block to the logits [B, V] after each sequence's last token."""


def run(
    reference: Reference,
    config: ModelConfig,
    weights: Weights,
    ids: Array,
    offsets: Array,
    state: Array,
    precision: Precision,
) -> tuple[Array, Array]:
    """The whole model: logits [B, V], and the state [B, L, R, D] after it."""
    after = np.empty_like(state)
    carried = finish(reference.first(ids, weights, config, precision))
    for number in range(config.num_hidden_layers):
        rows = state[:, number]
        carried, after[:, number] = finish(
            reference.block(number, carried, weights, rows, offsets, config, precision)
        )
    return finish(reference.last(carried, weights, offsets, config, precision)), after
