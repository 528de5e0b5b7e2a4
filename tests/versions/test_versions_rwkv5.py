"""The references of RWKV-5 and 6 against BlinkDL's `rwkv`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv_logits
from support.values import model_config, run

from mlc_rwkv_world.versions.precision import FLOAT16, FLOAT32

LAYERS, WIDTH, VOCABULARY = 3, 128, 300
# The peer computes in float32.
TOLERANCE = 1e-5
VERSIONS = ("5.0", "5.1", "5.2", "6.0")

Tensors = checkpoints.Tensors


@pytest.fixture(scope="module", params=VERSIONS)
def tensors(request: pytest.FixtureRequest) -> Tensors:
    return checkpoints.random_rwkv5(LAYERS, WIDTH, VOCABULARY, seed=11, version=request.param)


@pytest.mark.slow
def test_logits_are_those_of_rwkv(tensors: Tensors, ids: list[int], tmp_path: Path) -> None:
    expected = rwkv_logits(checkpoints.write_pth(tmp_path / "random.pth", tensors), ids)
    _, logits = run(tensors, ids)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_types(tensors: Tensors, ids: list[int]) -> None:
    """Float16 for what products read and give, but for the recurrence; float32 for vectors."""
    exact, logits = run(tensors, ids)
    blocks, narrow = run(tensors, ids, FLOAT16)
    names = {name for name, values in blocks[1].items() if values.dtype == np.float16}
    config = model_config(tensors)
    if config.model_version == 6:
        mixes = {f"time_maa_{part}" for part in "xwkvrg"} | {"time_maa_w1 tanh"}
        mixes, channel = mixes | {"time_decay_w1 tanh"}, ("time_maa_k", "time_maa_r")
    else:
        products = ("receptance", "key", "value", *(["gate"] if config.attention_gate else []))
        mixes, channel = (
            {f"time_mix_{part}" for part in products},
            ("time_mix_key", "time_mix_receptance"),
        )
    assert names == {
        *(f"attention.{mix}" for mix in mixes),
        *(["attention.gate"] if config.attention_gate else []),
        *("attention.ln_x multiply", "attention.output", "attention.output add"),
        *(f"feed_forward.{mix}" for mix in channel),
        *("feed_forward.receptance", "feed_forward.receptance sigmoid", "feed_forward.key"),
        *("feed_forward.key relu", "feed_forward.key square", "feed_forward.value"),
        *("feed_forward.value multiply", "feed_forward.value add"),
    }
    keys, _ = run(tensors, ids, FLOAT16, float32_keys=False)
    more = {name for name, values in keys[1].items() if values.dtype == np.float16} - names
    assert more == {"attention.receptance", "attention.key", "attention.value"}
    error = np.sqrt(np.square(narrow - logits).mean() / np.square(logits).mean())
    assert 1e-5 < error < 1e-2
    wide, _ = run(tensors, ids, FLOAT32)
    assert {str(values.dtype) for values in wide[0].values()} == {"float32"}
    assert list(wide[1]) == list(blocks[1]) == list(exact[1])
