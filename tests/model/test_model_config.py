"""Configurations: what they fill in, refuse, and give back."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from support.modules import small_config

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.rwkv4 import model as rwkv4
from mlc_rwkv_world.versions.table import version_of


def test_sizes_that_follow_from_others() -> None:
    config = small_config(hidden_size=768)
    assert config.attention_hidden_size == 768
    assert (config.head_size, config.num_heads) == (64, 12)
    assert small_config(hidden_size=32).num_heads == 1
    # A configuration of Hugging Face's may say null.
    assert small_config(attention_hidden_size=None).attention_hidden_size == 64


def test_round_trip_ignores_what_is_not_ours() -> None:
    config = small_config(rescale_every=6, layer_norm_epsilon=1e-6)
    assert ModelConfig.from_dict({**config.as_dict(), "tie_word_embeddings": False}) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": "64"},
        {"vocab_size": -1},
        {"num_hidden_layers": 2.0},
        {"num_hidden_layers": 10**9},
        {"layer_norm_epsilon": "1e-5"},
        {"layer_norm_epsilon": math.nan},
        {"model_version": [4]},
        {"fp32_reasons": 5},
        {"head_size": 0},
        {"prefill_chunk_size": 0},
        {"max_batch_size": True},
        {"rescale_every": -1},
        {"rescale_every": "6"},
        {"attention_hidden_size": 128},
        {"tensor_parallel_shards": 2},
    ],
    ids=str,
)
def test_refusals_name_the_field_and_its_value(changes: dict[str, Any]) -> None:
    ((field, value),) = changes.items()
    with pytest.raises(UsageError, match=re.escape(f"model_config: {field} is {value!r}")):
        small_config(**changes)


def test_missing_fields_are_named() -> None:
    with pytest.raises(UsageError, match="intermediate_size, vocab_size missing"):
        ModelConfig.from_dict({"hidden_size": 64, "num_hidden_layers": 2})


def test_versions() -> None:
    assert version_of(4).model is rwkv4.RWKV4
    assert version_of(4).initial_rows == (0, 0, 0, -1e30, 0)
    with pytest.raises(UsageError, match="RWKV-5 is not supported yet; this package builds RWKV 4"):
        version_of(5)
