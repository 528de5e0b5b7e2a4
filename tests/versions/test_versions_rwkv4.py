"""RWKV-4's reference against two peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv_logits
from support.values import run

from mlc_rwkv_world.versions.precision import FLOAT16, FLOAT32

LAYERS, WIDTH, VOCABULARY = 3, 64, 300
# The peers compute in float32.
TOLERANCE = 1e-5

Tensors = checkpoints.Tensors


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return checkpoints.random_world(LAYERS, WIDTH, VOCABULARY, seed=11)


@pytest.mark.slow
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
