"""RWKV-4's reference against two peers, and against itself however a text is divided."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv_logits
from support.values import fresh_state, model_config, model_weights, run

from mlc_rwkv_world.versions import references
from mlc_rwkv_world.versions.precision import FLOAT16, FLOAT32, FLOAT64
from mlc_rwkv_world.versions.rwkv4 import reference as rwkv4
from mlc_rwkv_world.versions.weights import Dense

LAYERS, WIDTH, VOCABULARY, POSITIONS = 3, 64, 300, 40
# The peers compute in float32.
TOLERANCE = 1e-5

Tensors = checkpoints.Tensors


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return checkpoints.random_world(LAYERS, WIDTH, VOCABULARY, seed=11)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(i) for i in np.random.default_rng(12).integers(1, VOCABULARY, POSITIONS)]


def test_logits_are_those_of_rwkv(tensors: Tensors, ids: list[int], tmp_path: Path) -> None:
    expected = rwkv_logits(checkpoints.write_pth(tmp_path / "random.pth", tensors), ids)
    _, logits = run(tensors, ids)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.slow
def test_layers_are_those_of_transformers(tensors: Tensors, ids: list[int], tmp_path: Path) -> None:
    """What each product and normalization of a block gives, by the layer's name."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoints.write_hf_safetensors(tmp_path / "random", tensors)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, rescale_every=0)
    found: dict[str, np.ndarray] = {}
    for name, module in model.rwkv.blocks.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(
                lambda _module, _given, out, name=name: found.update({name: out[0].numpy().copy()})
            )
    with torch.no_grad():
        model(torch.tensor([ids]))
    blocks, _ = run(tensors, ids)
    layers = {name for name in found if not name.endswith("pre_ln")}
    assert len(layers) == LAYERS * 9
    for name in layers:
        block, _, layer = name.partition(".")
        values = blocks[int(block)][layer]
        atol = TOLERANCE * np.abs(values).max()
        np.testing.assert_allclose(values, found[name], rtol=0, atol=atol, err_msg=name)


def test_pieces_of_a_batch(tensors: Tensors, ids: list[int]) -> None:
    """Sequences of several lengths in two calls, against each one whole."""
    config, weights = model_config(tensors), model_weights(tensors)
    texts = [ids[:9], ids[9:10], ids[10:]]
    state = fresh_state(config, len(texts))
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
        np.testing.assert_allclose(after[number], end[0], rtol=1e-12, atol=1e-12)


def _read(
    texts: list[list[int]], config: Any, weights: Dense, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.array(text) for text in texts])
    offsets = np.cumsum([0, *map(len, texts)])
    return references.run(rwkv4, config, weights, ids, offsets, state, FLOAT64)


def test_halved_residual(tensors: Tensors, ids: list[int]) -> None:
    """Halving changes no logit where the outputs' weights are divided to match."""
    plain, weights = model_config(tensors), model_weights(tensors)
    halved = dataclasses.replace(plain, rescale_every=1)
    arrays = dict(weights.arrays)
    for number in range(LAYERS):
        for output in ("attention.output", "feed_forward.value"):
            name = f"model.blocks.{number}.{output}.weight"
            arrays[name] = arrays[name] / 2**number
    expected, _ = _read([ids], plain, weights, fresh_state(plain, 1))
    logits, _ = _read([ids], halved, Dense(arrays), fresh_state(plain, 1))
    # An epsilon that is not quartered would change the sixth digit.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_types(tensors: Tensors, ids: list[int]) -> None:
    """Float16 for what products read and give, but keys; float32 for vectors and states."""
    exact, logits = run(tensors, ids)
    blocks, narrow = run(tensors, ids, FLOAT16)
    names = {name for name, values in blocks[0].items() if values.dtype == np.float32}
    assert names == {
        *("ln1", "ln1 token_shift", "ln2", "ln2 token_shift"),
        *("attention.key", "attention.value", "attention.receptance sigmoid", "attention.wkv"),
    }
    assert {str(values.dtype) for values in blocks[0].values()} == {"float32", "float16"}
    assert narrow.dtype == np.float32
    error = np.sqrt(np.square(narrow - logits).mean() / np.square(logits).mean())
    assert 1e-5 < error < 1e-2
    wide, _ = run(tensors, ids, FLOAT32)
    assert {str(values.dtype) for values in wide[0].values()} == {"float32"}
    assert list(wide[0]) == list(blocks[0]) == list(exact[0])
