"""Every version's reference: the same however a text is divided, and its residual halved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Tensors, random_rwkv5, random_rwkv7, random_world
from support.values import fresh_state, model_config, model_weights

from mlc_rwkv_world.versions import references
from mlc_rwkv_world.versions.precision import FLOAT64
from mlc_rwkv_world.versions.table import version_of
from mlc_rwkv_world.versions.weights import Dense

LAYERS, WIDTH, VOCABULARY = 3, 128, 300


def _tensors(version: str) -> Tensors:
    if version in ("4", "7"):
        make = random_world if version == "4" else random_rwkv7
        return make(LAYERS, WIDTH, VOCABULARY, seed=11)
    return random_rwkv5(LAYERS, WIDTH, VOCABULARY, seed=11, version=version)


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6.0", "7"])
def test_pieces_of_a_batch(version: str, ids: list[int]) -> None:
    """Sequences of several lengths in two calls, against each one whole."""
    tensors = _tensors(version)
    config, weights = model_config(tensors), model_weights(tensors)
    texts = [ids[:9], ids[9:10], ids[10:]]
    state = fresh_state(config, len(texts))
    assert state.shape == (3, LAYERS, 5 if version == "4" else 66, WIDTH)
    halves = [[text[: len(text) // 2 + 1] for text in texts], [t[len(t) // 2 + 1 :] for t in texts]]
    begun = state.copy()
    logits, after = _read(halves[0], config, weights, state)
    np.testing.assert_array_equal(state, begun)
    longer = [n for n, text in enumerate(halves[1]) if text]
    logits[longer], after[longer] = _read(
        [halves[1][n] for n in longer], config, weights, after[longer]
    )
    for number, text in enumerate(texts):
        whole, end = _read([text], config, weights, fresh_state(config, 1))
        np.testing.assert_allclose(logits[number], whole[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(after[number], end[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("version", ["4", "5.0", "5.2", "6.0"])
def test_halved_residual(version: str, ids: list[int]) -> None:
    """Halving changes no logit where the outputs' weights are divided to match."""
    tensors = _tensors(version)
    plain, weights = model_config(tensors), model_weights(tensors)
    halved = dataclasses.replace(plain, rescale_every=1)
    arrays = dict(weights.arrays)
    for number in range(LAYERS):
        for output in version_of(plain.model_version).halved_outputs:
            name = f"model.blocks.{number}.{output}"
            arrays[name] = arrays[name] / 2**number
    expected, _ = _read([ids], plain, weights, fresh_state(plain, 1))
    logits, _ = _read([ids], halved, Dense(arrays), fresh_state(plain, 1))
    # An epsilon that is not quartered would change the sixth digit.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def _read(
    texts: list[list[int]], config: Any, weights: Dense, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.array(text) for text in texts])
    offsets = np.cumsum([0, *map(len, texts)])
    reference = version_of(config.model_version).reference
    return references.run(reference, config, weights, ids, offsets, state, FLOAT64)
