"""What a library says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
from lowering import Lowered
from support.modules import LAYERS, small_config

from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.runtime.library import open_library
from mlc_rwkv_world.storage import format_named

pytestmark = pytest.mark.slow

# What stock mlc_llm's engine and commands read of a library's metadata.
STOCK = {
    "model_type": "rwkv_world",
    "quantization": "q4f16_1",
    "context_window_size": -1,
    "sliding_window_size": -1,
    "attention_sink_size": -1,
    "prefill_chunk_size": 16,
    "tensor_parallel_shards": 1,
    "pipeline_parallel_stages": 1,
    "disaggregation": False,
    "kv_state_kind": "rnn_state",
    "max_batch_size": 4,
    "active_vocab_size": None,
    "model_task": "chat",
}
FUNCTIONS = {
    *("embed", "prefill", "decode", "batch_prefill", "batch_decode", "create_rnn_state"),
    *("rwkv_world_prefill", "rwkv_world_decode", "rwkv_world_batch_decode"),
}


@pytest.fixture(scope="module")
def said(whole_linked: Path) -> dict[str, Any]:
    """The metadata that the linked library returns."""
    import json

    found: dict[str, Any] = json.loads(
        str(open_library(whole_linked, tvm.cpu()).machine["_metadata"]())
    )
    return found


def test_stock_fields(said: dict[str, Any]) -> None:
    assert {key: said[key] for key in STOCK} == STOCK


def test_parameters_in_the_order_of_the_functions(said: dict[str, Any]) -> None:
    specs = parameters(small_config(), format_named("q4f16_1"))
    assert said["params"] == [
        {
            "name": spec.name,
            "shape": list(spec.shape),
            "dtype": spec.dtype,
            "preprocs": [],
            "pipeline_stages": [0],
        }
        for spec in specs
    ]


def test_our_fields(said: dict[str, Any]) -> None:
    ours = said["rwkv_world"]
    target = resolve("llvm")
    assert ours["target"] == target.describe()
    assert ours["cpu_features"] == target.cpu_features()
    assert ours["compute_dtype"] == "float32"
    assert (ours["num_hidden_layers"], ours["hidden_size"], ours["vocab_size"]) == (LAYERS, 64, 96)
    assert (ours["rescale_every"], ours["layer_norm_epsilon"]) == (0, 1e-5)
    assert ours["initial_rows"] == [0, 0, 0, -1e30, 0]
    assert ours["fp32_layers"] == []


def test_memory_of_temporaries_is_bounded_by_the_chunk(said: dict[str, Any]) -> None:
    usage = said["memory_usage"]
    assert set(usage) >= FUNCTIONS
    # A chunk's widest activation is 16 x 256 float32; several live at once, but not dozens.
    widest = 16 * 256 * 4
    assert widest <= usage["rwkv_world_prefill"] <= 16 * widest
    assert 0 < usage["rwkv_world_decode"] <= 16 * 256 * 4


def test_our_reader_takes_it(whole_linked: Path, whole: Lowered) -> None:
    parsed = open_library(whole_linked, tvm.cpu()).metadata
    assert parsed.quantization == "q4f16_1"
    assert [p.name for p in parsed.parameters] == [p["name"] for p in whole.described["params"]]
    assert (parsed.prefill_chunk_size, parsed.max_batch_size) == (16, 4)
    assert parsed.stock
    assert parsed.cpu_features == tuple(whole.target.cpu_features())


def test_every_function_is_exported(whole_linked: Path) -> None:
    library = open_library(whole_linked, tvm.cpu())
    for name in FUNCTIONS:
        assert library.function(name) is not None
