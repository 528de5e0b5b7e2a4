"""`mlc-chat-config.json` from our builder and from stock mlc_llm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.errors import ArtifactError

# The fields that stock `mlc_llm gen_config` writes for this kind of model.
STOCK: dict[str, Any] = {
    "version": "0.1.0",
    "model_type": "rwkv_world",
    "quantization": "q4f16_1",
    "model_config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 65536,
        "prefill_chunk_size": 256,
        "context_window_size": -1,
        "tensor_parallel_shards": 1,
    },
    "vocab_size": 65536,
    "context_window_size": -1,
    "sliding_window_size": -1,
    "prefill_chunk_size": 256,
    "attention_sink_size": -1,
    "tensor_parallel_shards": 1,
    "pipeline_parallel_stages": 1,
    "active_vocab_size": 65529,
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
    "tokenizer_files": ["tokenizer_model"],
    "tokenizer_info": {"token_postproc_method": "byte_fallback"},
    "conv_template": {"name": "rwkv_world", "roles": {"user": "User"}},
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": [0],
    "model_task": "chat",
    "embedding_metadata": None,
}


def read(folder: Path, content: dict[str, Any]) -> ChatConfig:
    (folder / "mlc-chat-config.json").write_text(json.dumps(content))
    return ChatConfig.read(folder)


def test_reads_what_stock_writes(tmp_path: Path) -> None:
    config = read(tmp_path, STOCK)
    assert config.quantization == "q4f16_1"
    assert config.vocab_size == 65536
    assert config.prefill_chunk_size == 256
    assert (config.temperature, config.top_p) == (1.0, 1.0)
    assert config.tokenizer_file == "tokenizer_model"
    assert config.conversation == STOCK["conv_template"]


def test_world_defaults_stand_in_for_what_is_missing(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        {
            "model_type": "rwkv_world",
            "quantization": "q0f32",
            "model_config": {"prefill_chunk_size": 64},
            "temperature": None,
            "conv_template": "rwkv_world",
        },
    )
    assert config.prefill_chunk_size == 64
    assert config.vocab_size == 65536
    assert (config.temperature, config.top_p) == (1.0, 0.3)
    assert (config.presence_penalty, config.frequency_penalty) == (0.4, 0.4)
    assert config.conversation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "a model of type 'llama'"),
        ({"model_type": None}, "'model_type' is null"),
        ({"quantization": 4}, "'quantization' is 4 instead of a string"),
        ({"vocab_size": 0}, "at least 1"),
        ({"temperature": "hot"}, 'temperature\' is "hot" instead of a number'),
        ({"temperature": True}, "a finite number"),
        ({"top_p": 10**400}, "a finite number"),
        ({"tokenizer_files": ["../secret"]}, "plain names"),
        ({"tokenizer_files": [".."]}, "plain names"),
        ({"model_config": []}, "an object"),
    ],
)
def test_refuses_what_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(tmp_path, STOCK | change)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
