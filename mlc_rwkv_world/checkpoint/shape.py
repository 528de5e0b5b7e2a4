"""How large the model is that a set of tensors makes, and which tensors it must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint.absence import missing, require_no_lora
from mlc_rwkv_world.checkpoint.names import EMBEDDINGS, is_models_own
from mlc_rwkv_world.checkpoint.stored import FLOAT_WORDS, StoredTensor
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import CheckpointError

WORLD_VOCAB_SIZE = 65536
_MAX_BLOCKS = 1024


@dataclass(frozen=True)
class ModelShape:
    """The sizes of an RWKV-4 model, under the names of Hugging Face's configuration."""

    num_hidden_layers: int
    hidden_size: int
    attention_hidden_size: int
    intermediate_size: int
    vocab_size: int
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 6

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model in the model's order, vectors as one axis."""
        width, inner = self.hidden_size, self.intermediate_size
        vector = (width,)
        norm = {"weight": vector, "bias": vector}
        shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (self.vocab_size, width)}
        for i in range(self.num_hidden_layers):
            block = f"blocks.{i}"
            for ln in ("pre_ln", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
                shapes |= {f"{block}.{ln}.{part}": size for part, size in norm.items()}
            attention = f"{block}.attention"
            for part in ("decay", "first", "mix_key", "mix_value", "mix_receptance"):
                shapes[f"{attention}.time_{part}"] = vector
            for part in ("key", "value", "receptance", "output"):
                shapes[f"{attention}.{part}.weight"] = (width, width)
            feed_forward = f"{block}.feed_forward"
            for part in ("key", "receptance"):
                shapes[f"{feed_forward}.time_mix_{part}"] = vector
            shapes[f"{feed_forward}.key.weight"] = (inner, width)
            shapes[f"{feed_forward}.receptance.weight"] = (width, width)
            shapes[f"{feed_forward}.value.weight"] = (width, inner)
        shapes |= {f"ln_out.{part}": size for part, size in norm.items()}
        shapes["head.weight"] = (self.vocab_size, width)
        return shapes


def shape_of_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> ModelShape:
    """The sizes of the RWKV-4 World model that the `tensors`, by canonical name, are.

    Axes of length one do not count in vectors. Raises CheckpointError where the tensors
    are not those of one whole World model; `path` begins the message.
    """
    names = {canonical: tensor.name for canonical, tensor in tensors.items()}
    require_no_lora(path, names)
    _require_floats(tensors)
    blocks = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    if not blocks and EMBEDDINGS not in names:
        raise CheckpointError(
            f"{path} is not an RWKV model: its tensors are named "
            f"{listed(names.values()) or 'nothing'}, expected 'emb.weight', "
            "'blocks.0.att.key.weight' and so on."
        )
    if not blocks or max(blocks) != len(blocks) - 1:
        raise CheckpointError(
            f"{path} has tensors of the blocks {listed(sorted(blocks), 8) or 'none'}, expected "
            "every block from 0 on: part of the checkpoint is missing."
        )
    if len(blocks) > _MAX_BLOCKS:
        raise CheckpointError(
            f"{path} has {len(blocks)} blocks, expected at most {_MAX_BLOCKS}: it is damaged."
        )
    for name in (EMBEDDINGS, "blocks.0.feed_forward.key.weight"):
        if name not in tensors:
            raise missing(path, [name], names)
        if len(tensors[name].shape) != 2 or 0 in tensors[name].shape:
            raise CheckpointError(
                f"{path}: tensor {quoted(names[name])} has shape {list(tensors[name].shape)}, "
                "expected a matrix."
            )
    vocab_size, width = tensors[EMBEDDINGS].shape
    _require_world(path, vocab_size)
    shape = ModelShape(
        num_hidden_layers=len(blocks),
        hidden_size=width,
        attention_hidden_size=width,
        intermediate_size=tensors["blocks.0.feed_forward.key.weight"].shape[0],
        vocab_size=vocab_size,
    )
    _require_tensors(path, shape.tensor_shapes(), tensors)
    return shape


def _require_floats(tensors: Mapping[str, StoredTensor]) -> None:
    for canonical, tensor in tensors.items():
        if is_models_own(canonical) and tensor.dtype not in FLOAT_WORDS:
            raise CheckpointError(
                f"{tensor.region.path}: tensor {quoted(tensor.name)} holds {tensor.dtype}; "
                "expected float32, float16 or bfloat16. Give an unquantized checkpoint, the one "
                "that this was made from."
            )


def _require_world(path: Path, vocab_size: int) -> None:
    if vocab_size == WORLD_VOCAB_SIZE:
        return
    raise CheckpointError(
        f"{path} has a vocabulary of {vocab_size}, expected the World vocabulary of "
        f"{WORLD_VOCAB_SIZE}: give an RWKV-4 World checkpoint."
    )


def _require_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor]
) -> None:
    names = {canonical: tensor.name for canonical, tensor in tensors.items()}
    if lost := [name for name in expected if name not in tensors]:
        raise missing(path, lost, names)
    if unknown := [name for canonical, name in names.items() if canonical not in expected]:
        raise CheckpointError(
            f"{path} has tensors that RWKV-4 does not: {listed(unknown)}. It is a variant or "
            "another model; give a plain RWKV-4 World checkpoint."
        )
    for canonical, shape in expected.items():
        found = tensors[canonical].shape
        if _squeezed(found, len(shape)) != shape:
            raise CheckpointError(
                f"{path}: tensor {quoted(names[canonical])} has shape {list(found)}, expected "
                f"{list(shape)}. The file is damaged or another model's: use another copy."
            )


def _squeezed(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """`shape` without its axes of length one where a vector (`axes` is 1) is expected."""
    return tuple(n for n in shape if n != 1) if axes == 1 else shape


def apply_config(
    path: Path, config_path: Path, config: Mapping[str, Any], shape: ModelShape
) -> ModelShape:
    """`shape` with the numbers that only config.json knows.

    Fields that are null, missing or unknown are tolerated; one that contradicts the
    tensors is a CheckpointError that names both values.
    """
    model_type = config.get("model_type")
    if model_type is not None and model_type not in ("rwkv", "rwkv4", "rwkv_world"):
        raise CheckpointError(
            f"{config_path} says model_type {quoted(model_type)}, but the tensors in {path} are "
            "those of RWKV-4 (model_type 'rwkv'): the files do not belong together."
        )
    for field in (
        "num_hidden_layers",
        "hidden_size",
        "attention_hidden_size",
        "intermediate_size",
        "vocab_size",
    ):
        value, actual = config.get(field), getattr(shape, field)
        if value is not None and (type(value) is not int or value != actual):
            raise CheckpointError(
                f"{config_path} says {field} {quoted(value)}, but the tensors in {path} have "
                f"{actual}: the files do not belong together, or config.json was edited."
            )
    epsilon = config.get("layer_norm_epsilon")
    if epsilon is None:
        epsilon = shape.layer_norm_epsilon
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise CheckpointError(
            f"{config_path} says layer_norm_epsilon {quoted(epsilon)}, expected a small number "
            "such as 1e-05."
        )
    rescale_every = config.get("rescale_every")
    if rescale_every is None:
        rescale_every = shape.rescale_every
    if type(rescale_every) is not int or rescale_every < 0:
        raise CheckpointError(
            f"{config_path} says rescale_every {quoted(rescale_every)}, expected a whole number "
            "of blocks such as 6, or 0 for never."
        )
    return replace(shape, layer_norm_epsilon=float(epsilon), rescale_every=rescale_every)
