"""What a library says of itself through its function `_metadata`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import Op

from mlc_rwkv_world.artifact.abi import METADATA
from mlc_rwkv_world.artifact.json_fields import BUILD_ID
from mlc_rwkv_world.artifact.layout import MODEL_TYPE
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.compiler.export import ParameterSpec, build_id
from mlc_rwkv_world.compiler.passes.pack_weights import PACKED_PARAMS
from mlc_rwkv_world.compiler.target import BuildTarget
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.tvm_names import StringImm, name_of
from mlc_rwkv_world.versions.table import version_of


def describe(
    config: ModelConfig,
    fmt: Format,
    specs: Sequence[ParameterSpec],
    target: BuildTarget,
    compute_dtype: str,
    arithmetic: dict[str, str] | None = None,
    *,
    stock: bool = True,
) -> dict[str, Any]:
    """The fields that stock engines read, and our own under `rwkv_world`.

    `stock` is whether the library has the functions that these engines call.
    """
    tuned = version_of(config.model_version).tuned_rows
    return {
        "model_type": MODEL_TYPE,
        "quantization": fmt.name,
        "context_window_size": config.context_window_size,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": config.prefill_chunk_size,
        "tensor_parallel_shards": config.tensor_parallel_shards,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "rnn_state",
        "max_batch_size": config.max_batch_size,
        "active_vocab_size": None,
        "model_task": "chat",
        "params": [
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "dtype": spec.dtype,
                "preprocs": [],
                "pipeline_stages": [0],
            }
            for spec in specs
        ],
        "rwkv_world": {
            "revision": REVISION,
            "tvm": tvm.__version__,
            BUILD_ID: build_id(config, fmt, specs),
            "target": target.describe(),
            "cpu_features": target.cpu_features(),
            "compute_dtype": compute_dtype,
            "arithmetic": arithmetic or {},
            "num_hidden_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "initial_rows": list(version_of(config.model_version).initial_rows(config)),
            "tuned_state": tuned and dataclasses.asdict(tuned(config)),
            "layer_norm_epsilon": config.layer_norm_epsilon,
            "head_size_divisor": config.head_size_divisor,
            "rescale_every": config.rescale_every,
            "fp32_layers": list(config.fp32_layers or ()),
            "fp32_reasons": list(config.fp32_reasons),
            "float32_keys": config.float32_keys,
            "stock": stock,
            "packed_params": None,
        },
    }


def attach(mod: IRModule, metadata: dict[str, Any]) -> IRModule:
    """Adds the function `_metadata`, which returns the metadata as JSON.

    `metadata` gets `memory_usage`: the bytes that each function of the planned module takes, and
    how our functions' parameters are packed.
    """
    metadata["memory_usage"] = _memory_usage(mod)
    if mod.attrs and PACKED_PARAMS in mod.attrs:
        packed = json.loads(str(mod.attrs[PACKED_PARAMS]))
        metadata["rwkv_world"] = {**metadata["rwkv_world"], "packed_params": packed}
    text = json.dumps(metadata)
    builder = relax.BlockBuilder()
    with builder.function(METADATA, params=[]):
        builder.emit_func_output(StringImm(text))
    mod = mod.clone()
    mod[METADATA] = builder.finalize()[METADATA]
    return mod


def _memory_usage(mod: IRModule) -> dict[str, int]:
    """Bytes of temporaries that each function of a planned module allocates."""
    usage: dict[str, int] = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            sizes: list[int] = []
            relax.analysis.post_order_visit(func, partial(_collect_storage, sizes))
            usage[name_of(gvar)] = sum(sizes)
    return usage


def _collect_storage(sizes: list[int], expr: relax.Expr) -> None:
    if isinstance(expr, relax.Call) and expr.op == _ALLOC_STORAGE:
        (size,) = expr.args[0].values
        if isinstance(size, tirx.IntImm):
            sizes.append(int(size))


_ALLOC_STORAGE = Op.get("relax.memory.alloc_storage")
