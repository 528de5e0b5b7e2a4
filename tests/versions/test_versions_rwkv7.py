"""RWKV-7's reference against two peers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv7_hf_logits, rwkv7_logits
from support.values import model_config, run

from mlc_rwkv_world.versions.precision import FLOAT16, FLOAT32

LAYERS, WIDTH, VOCABULARY = 3, 128, 300
# The peers compute in float32.
TOLERANCE = 1e-5

Tensors = checkpoints.Tensors


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return checkpoints.random_rwkv7(LAYERS, WIDTH, VOCABULARY, seed=11)


@pytest.mark.slow
def test_logits_are_those_of_rwkv(tensors: Tensors, ids: list[int], tmp_path: Path) -> None:
    expected = rwkv7_logits(checkpoints.write_pth(tmp_path / "random.pth", tensors), ids)
    _, logits = run(tensors, ids)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.slow
def test_logits_are_those_of_rwkv7_hf(tensors: Tensors, ids: list[int], tmp_path: Path) -> None:
    expected = rwkv7_hf_logits(checkpoints.write_fla(tmp_path / "random", tensors), ids)
    _, logits = run(tensors, ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_the_size_of_a_head_matters(tensors: Tensors, ids: list[int]) -> None:
    """It stands in no shape but that of r_k."""
    _, logits = run(tensors, ids)
    other = {
        name: array.reshape(-1, 32) if name.endswith(".r_k") else array
        for name, array in tensors.items()
    }
    assert model_config(other).head_size == 32
    assert np.abs(run(other, ids)[1] - logits).max() > 0.01


def test_types(tensors: Tensors, ids: list[int]) -> None:
    """Float16 for what products read and give, but for the recurrence; float32 for vectors."""
    exact, logits = run(tensors, ids)
    blocks, narrow = run(tensors, ids, FLOAT16)
    names = {name for name, values in blocks[1].items() if values.dtype == np.float16}
    assert names == {
        *(f"attention.x_{part}" for part in "rwkvag"),
        *("attention.w1 tanh", "attention.a1", "attention.v1", "attention.g1 sigmoid"),
        *("attention.ln_x multiply", "attention.output", "attention.output add"),
        *("feed_forward.x_k", "feed_forward.key", "feed_forward.key relu"),
        *("feed_forward.key square", "feed_forward.value", "feed_forward.value add"),
    }
    assert {str(values.dtype) for values in blocks[1].values()} == {"float32", "float16"}
    keys, _ = run(tensors, ids, FLOAT16, float32_keys=False)
    more = {name for name, values in keys[1].items() if values.dtype == np.float16} - names
    assert more == {"attention.receptance", "attention.key", "attention.value"}
    assert narrow.dtype == np.float32
    error = np.sqrt(np.square(narrow - logits).mean() / np.square(logits).mean())
    assert 1e-5 < error < 1e-2
    wide, _ = run(tensors, ids, FLOAT32)
    assert {str(values.dtype) for values in wide[0].values()} == {"float32"}
    assert list(wide[1]) == list(blocks[1]) == list(exact[1])
    # Block 0 takes no share of its own value.
    assert {name for name in blocks[1] if re.match(r"attention\.(v\d|value r)", name)}
    assert not {name for name in blocks[0] if re.match(r"attention\.(v\d|value r)", name)}
