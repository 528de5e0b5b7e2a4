"""Configurations: what they fill in, refuse, and give back."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from support.modules import RWKV7, small_config

from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import FORMATS
from mlc_rwkv_world.versions.rwkv4 import model as rwkv4
from mlc_rwkv_world.versions.rwkv5 import model as rwkv5
from mlc_rwkv_world.versions.rwkv6 import model as rwkv6
from mlc_rwkv_world.versions.rwkv7 import model as rwkv7
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
        {"head_size_divisor": 0},
        {"gate_low_rank_dim": -1},
        {"a_low_rank_dim": "32"},
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
    assert version_of(4).initial_rows(small_config()) == (0, 0, 0, -1e30, 0)
    assert version_of(7).model is rwkv7.RWKV7
    assert version_of(7).initial_rows(small_config(head_size=32)) == (0,) * 34
    for number, made in ((5, rwkv5.RWKV5), (6, rwkv6.RWKV6)):
        assert version_of(number).model is made
        assert version_of(number).initial_rows(small_config(head_size=32)) == (0,) * 34
    with pytest.raises(UsageError, match="RWKV-8 is not supported yet; this package builds RWKV 4"):
        version_of(8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_version": 5, "head_size": 48}, "hidden_size 128 is no multiple of head_size 48"),
        ({"model_version": 6}, "mix_low_rank_dim is missing"),
        ({"head_size": 48}, "hidden_size 128 is no multiple of head_size 48"),
        ({"decay_low_rank_dim": 0}, "the rank of w1 and w2 is missing"),
        ({"v_low_rank_dim": 0}, "the rank of v1 and v2 is missing"),
    ],
)
def test_sizes_that_make_no_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parameters(small_config(**{**RWKV7, **changes}), FORMATS["q0f16"])


def test_one_block_takes_no_share_of_a_value() -> None:
    config = small_config(**{**RWKV7, "num_hidden_layers": 1, "v_low_rank_dim": 0})
    names = [spec.name for spec in parameters(config, FORMATS["q0f16"])]
    assert "model.blocks.0.attention.a1.weight" in names
    assert "model.blocks.0.attention.v1.weight" not in names


def test_ranks_that_groups_do_not_divide() -> None:
    config = small_config(**{**RWKV7, "a_low_rank_dim": 24})
    with pytest.raises(UsageError, match=r"rows of 24 do not divide\. Use q0f16"):
        parameters(config, FORMATS["q8f16_1"])
    assert parameters(config, FORMATS["q0f16"])
