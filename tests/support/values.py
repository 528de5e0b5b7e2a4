"""The values of a checkpoint's model, by the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.precision import FLOAT64, Precision
from mlc_rwkv_world.versions.table import version_of
from mlc_rwkv_world.versions.values import Value, finish
from mlc_rwkv_world.versions.weights import Dense
from support.checkpoints import canonical_name

Block = dict[str, np.ndarray]


def model_weights(tensors: Mapping[str, np.ndarray]) -> Dense:
    """Tensors under BlinkDL's names as the model names and shapes them."""
    width = tensors["emb.weight"].shape[1]
    shaped: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        for ours, values in _shaped(
            name, tensor, width, later="blocks.0.att.ln_x.weight" in tensors
        ):
            shaped[_model_name(ours)] = values
    return Dense(shaped)


def _shaped(
    name: str, tensor: np.ndarray, width: int, *, later: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """`later` versions than 4 have heads."""
    part = name.rpartition(".")[2]
    if part == "r_k":
        yield name, tensor
    elif re.search(r"\.att\.[wavg][12]$", name):
        # BlinkDL multiplies by these from the other side.
        yield name, tensor.T
    elif part == "time_maa_w2":
        for letter, rows in zip("wkvrg", tensor, strict=True):
            yield f"{name}.{letter}.weight", rows.T
    elif part in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
        yield f"{name}.weight", tensor.T
    elif later and part in ("time_decay", "time_first", "time_faaaa") and tensor.ndim < 3:
        values = np.exp(tensor) if part == "time_first" else tensor
        if values.ndim == 1:
            values = values.repeat(width // len(values)).reshape(len(values), -1)
        yield name.replace("faaaa", "first"), values
    else:
        yield name, tensor.squeeze()


def _model_name(name: str) -> str:
    name = canonical_name(name).replace("blocks.0.pre_ln", "pre_ln")
    return name if name == "head.weight" else f"model.{name}"


def model_config(tensors: Mapping[str, np.ndarray], *, float32_keys: bool = True) -> ModelConfig:
    """The configuration of a checkpoint's model, of any version."""
    vocab_size, width = tensors["emb.weight"].shape
    heads: dict[str, Any] = {}
    if "blocks.0.att.r_k" in tensors:
        fields = {"w": "decay", "a": "a", "v": "v", "g": "gate"}
        heads = {
            f"{field}_low_rank_dim": tensors[f"blocks.1.att.{part}1"].shape[1]
            for part, field in fields.items()
        }
        heads |= {"model_version": 7, "head_size": tensors["blocks.0.att.r_k"].shape[1]}
    elif "blocks.0.att.ln_x.weight" in tensors:
        bonus = "time_faaaa" if "blocks.0.att.time_faaaa" in tensors else "time_first"
        heads = {
            "model_version": 6 if "blocks.0.att.time_maa_x" in tensors else 5,
            "head_size": width // len(tensors[f"blocks.0.att.{bonus}"]),
            "attention_gate": "blocks.0.att.gate.weight" in tensors,
        }
        if heads["model_version"] == 6:
            heads["mix_low_rank_dim"] = tensors["blocks.0.att.time_maa_w1"].shape[1] // 5
            heads["decay_low_rank_dim"] = tensors["blocks.0.att.time_decay_w1"].shape[1]
    return ModelConfig(
        hidden_size=width,
        intermediate_size=len(tensors["blocks.0.ffn.key.weight"]),
        num_hidden_layers=sum(name.endswith(".ln1.weight") for name in tensors),
        vocab_size=vocab_size,
        float32_keys=float32_keys,
        fp32_layers=(),
        **heads,
    )


def fresh_state(
    config: ModelConfig, batch: int, dtype: type[np.floating] = np.float64
) -> np.ndarray:
    """[B, L, R, D]."""
    initial = np.array(version_of(config.model_version).initial_rows(config), dtype)
    shape = (batch, config.num_hidden_layers, len(initial), config.hidden_size)
    state: np.ndarray = np.broadcast_to(initial[:, None], shape).copy()
    return state


def run(
    tensors: Mapping[str, np.ndarray],
    ids: Sequence[int],
    precision: Precision = FLOAT64,
    *,
    float32_keys: bool = True,
) -> tuple[list[Block], np.ndarray]:
    """The values of each block [T, ..] over one sequence from a fresh state, and logits [T, V].

    `tensors` are under BlinkDL's names; values have the names that the reference gives them.
    """
    weights = model_weights(tensors)
    config = model_config(tensors, float32_keys=float32_keys)
    reference = version_of(config.model_version).reference
    offsets = np.array([0, len(ids)])
    state = fresh_state(config, 1, precision.wide)
    carried = finish(reference.first(np.array(ids), weights, config, precision))
    blocks: list[Block] = []
    for number in range(config.num_hidden_layers):
        seen: list[Value] = []
        rows = state[:, number]
        carried, _ = finish(
            reference.block(number, carried, weights, rows, offsets, config, precision), seen.append
        )
        blocks.append({value.name: value.values for value in seen})
    # Each token as the last of a sequence of its own.
    each = np.arange(len(ids) + 1)
    return blocks, finish(reference.last(carried, weights, each, config, precision))
