"""The values of a checkpoint's model, by the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.precision import FLOAT64, Precision
from mlc_rwkv_world.versions.rwkv4 import reference
from mlc_rwkv_world.versions.table import version_of
from mlc_rwkv_world.versions.values import Value, finish
from mlc_rwkv_world.versions.weights import Dense
from support.checkpoints import canonical_name

Block = dict[str, np.ndarray]


def model_weights(tensors: Mapping[str, np.ndarray]) -> Dense:
    """Tensors under BlinkDL's names as the model names and shapes them."""
    return Dense({_model_name(name): tensor.squeeze() for name, tensor in tensors.items()})


def _model_name(name: str) -> str:
    name = canonical_name(name).replace("blocks.0.pre_ln", "pre_ln")
    return name if name == "head.weight" else f"model.{name}"


def model_config(tensors: Mapping[str, np.ndarray], *, float32_keys: bool = True) -> ModelConfig:
    """The configuration of a checkpoint's model."""
    vocab_size, width = tensors["emb.weight"].shape
    return ModelConfig(
        hidden_size=width,
        intermediate_size=len(tensors["blocks.0.ffn.key.weight"]),
        num_hidden_layers=sum(name.endswith(".ln1.weight") for name in tensors),
        vocab_size=vocab_size,
        float32_keys=float32_keys,
        fp32_layers=(),
    )


def fresh_state(
    config: ModelConfig, batch: int, dtype: type[np.floating] = np.float64
) -> np.ndarray:
    """[B, L, R, D]."""
    initial = np.array(version_of(config.model_version).initial_rows, dtype)
    shape = (batch, config.num_hidden_layers, len(initial), config.hidden_size)
    return np.broadcast_to(initial[:, None], shape).copy()


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
