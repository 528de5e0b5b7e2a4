"""Writes `mlc-chat-config.json`: what an engine needs to know beside the parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.config import OURS, TEMPLATE, THINK
from mlc_rwkv_world.artifact.conversation import conversation as stock_form
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, MODEL_TYPE, TOKENIZER_MODEL
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import WORLD
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.tokenizer import WorldTokenizer

_SCHEMA_VERSION = "0.1.0"
_PRECISION = ("fp32_layers", "fp32_reasons", "float32_keys")


def write_vocabulary(folder: Path, source: Path | None) -> None:
    """Writes the vocabulary in `source`, or the packaged one where a checkpoint has none."""
    tokenizer = WorldTokenizer.from_file(source) if source is not None else WorldTokenizer.default()
    tokenizer.save(folder / TOKENIZER_MODEL)


def write_chat_config(
    folder: Path,
    config: ModelConfig,
    fmt: Format,
    conversation: dict[str, Any] | None = None,
    *,
    template: Template = WORLD,
) -> None:
    """The fields of stock mlc_llm's schema, and ours: which template, and how much to think.

    Sampling defaults are the template's. A `conversation` in stock's form goes before it, and is
    then all that the file says of templates.
    """
    content: dict[str, Any] = {
        "version": _SCHEMA_VERSION,
        "model_type": MODEL_TYPE,
        "quantization": fmt.name,
        "model_config": config.as_dict(),
        "vocab_size": config.vocab_size,
        "active_vocab_size": config.vocab_size,
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,
        "prefill_chunk_size": config.prefill_chunk_size,
        "attention_sink_size": -1,
        "tensor_parallel_shards": config.tensor_parallel_shards,
        "pipeline_parallel_stages": 1,
        "temperature": template.sampling.temperature,
        "presence_penalty": template.sampling.presence_penalty,
        "frequency_penalty": template.sampling.frequency_penalty,
        "repetition_penalty": template.sampling.repetition_penalty,
        "top_p": template.sampling.top_p,
        "tokenizer_files": [TOKENIZER_MODEL],
        "tokenizer_info": {
            # Stock knows two ways to decode a token, and this one changes none of World's.
            "token_postproc_method": "byte_fallback",
            "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "conv_template": conversation or stock_form(template),
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "model_task": "chat",
    }
    if conversation is None:
        content[OURS] = {TEMPLATE: template.name}
        if template.thinks:
            content[OURS][THINK] = template.think
    _write(folder / CHAT_CONFIG, content)


def record_precision(folder: Path, config: ModelConfig) -> None:
    """Puts a new library's choice of precision into an older configuration, if there is one."""
    path = folder / CHAT_CONFIG
    if not path.is_file():
        return
    content = Fields.read(path).values
    chosen = config.as_dict()
    content["model_config"] |= {key: chosen[key] for key in _PRECISION}
    # It may be a link to the file of an older artifact, which stays as it is.
    path.unlink()
    _write(path, content)


def _write(path: Path, content: dict[str, Any]) -> None:
    # In ASCII: what an older configuration holds may have no form in UTF-8.
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
