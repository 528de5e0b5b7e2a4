"""How large the model is that a set of tensors makes, and which tensors it must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlc_rwkv_world.checkpoint import rwkv4, rwkv5, rwkv6, rwkv7
from mlc_rwkv_world.checkpoint.absence import missing, require_no_lora
from mlc_rwkv_world.checkpoint.layout import Layout
from mlc_rwkv_world.checkpoint.names import EMBEDDINGS, HEAD, is_models_own
from mlc_rwkv_world.checkpoint.stored import FLOAT_WORDS, StoredTensor
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import CheckpointError

WORLD_VOCAB_SIZE = 65536
_MAX_BLOCKS = 1024
# Fields of config.json that must agree with the tensors, and what they are here.
_FIELDS = {
    name: name
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "attention_hidden_size",
        "intermediate_size",
        "vocab_size",
    )
}
# What flash-linear-attention calls layer_norm_epsilon.
_FLA_EPSILON = "norm_eps"


LAYOUTS: Mapping[int, Layout] = {4: rwkv4, 5: rwkv5, 6: rwkv6, 7: rwkv7}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of an RWKV model, under the names of `model_config`."""

    num_hidden_layers: int
    hidden_size: int
    attention_hidden_size: int
    intermediate_size: int
    vocab_size: int
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 6
    model_version: int = 4
    head_size: int = 64
    head_size_divisor: int = 8
    decay_low_rank_dim: int = 0
    a_low_rank_dim: int = 0
    v_low_rank_dim: int = 0
    gate_low_rank_dim: int = 0
    mix_low_rank_dim: int = 0
    attention_gate: bool = True

    @property
    def layout(self) -> Layout:
        """What its version says of its tensors."""
        return LAYOUTS[self.model_version]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model in the model's order, vectors as one axis."""
        width = self.hidden_size
        norm = {"weight": (width,), "bias": (width,)}
        shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: (self.vocab_size, width)}
        for i in range(self.num_hidden_layers):
            block = f"blocks.{i}"
            for ln in ("pre_ln", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
                shapes |= {f"{block}.{ln}.{part}": size for part, size in norm.items()}
            inside = self.layout.block_shapes(self, i)
            shapes |= {f"{block}.{name}": size for name, size in inside.items()}
        shapes |= {f"ln_out.{part}": size for part, size in norm.items()}
        shapes[HEAD] = (self.vocab_size, width)
        return shapes


def shape_of_tensors(
    path: Path, tensors: Mapping[str, StoredTensor], version: int = 4
) -> ModelShape:
    """The sizes of the World model of a version that the `tensors`, by canonical name, are.

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
    layout, key = LAYOUTS[version], "blocks.0.feed_forward.key.weight"
    for name in (EMBEDDINGS, key, *(f"blocks.0.{name}" for name in layout.MEASURED)):
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
        model_version=version,
        rescale_every=layout.RESCALE_EVERY,
        num_hidden_layers=len(blocks),
        hidden_size=width,
        attention_hidden_size=width,
        intermediate_size=tensors[key].shape[0],
        vocab_size=vocab_size,
        **layout.measured(tensors),
    )
    _require_tensors(path, shape, tensors)
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
        f"{WORLD_VOCAB_SIZE}: give an RWKV World checkpoint."
    )


def _require_tensors(path: Path, model: ModelShape, tensors: Mapping[str, StoredTensor]) -> None:
    expected, known = model.tensor_shapes(), f"RWKV-{model.model_version}"
    names = {canonical: tensor.name for canonical, tensor in tensors.items()}
    if lost := [name for name in expected if name not in tensors]:
        raise missing(path, lost, names)
    blocks = range(model.num_hidden_layers)
    usual = {*expected, *(f"blocks.{i}.{name}" for i in blocks for name in model.layout.UNUSED)}
    if unknown := [name for canonical, name in names.items() if canonical not in usual]:
        raise CheckpointError(
            f"{path} has tensors that {known} does not: {listed(unknown)}. It is a variant or "
            f"another model; give a plain {known} World checkpoint."
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
    known = shape.layout.MODEL_TYPES
    if model_type is not None and model_type not in known:
        raise CheckpointError(
            f"{config_path} says model_type {quoted(model_type)}, but the tensors in {path} are "
            f"those of RWKV-{shape.model_version} (model_type {known[0]!r}): the files do not "
            "belong together."
        )
    for name, field in {**_FIELDS, **shape.layout.FIELDS}.items():
        value, actual = config.get(name), getattr(shape, field)
        if value is not None and (type(value) is not int or value != actual):
            raise CheckpointError(
                f"{config_path} says {name} {quoted(value)}, but the tensors in {path} have "
                f"{actual}: the files do not belong together, or config.json was edited."
            )
    name = "layer_norm_epsilon" if config.get("layer_norm_epsilon") is not None else _FLA_EPSILON
    epsilon = config.get(name)
    if epsilon is None:
        epsilon = shape.layer_norm_epsilon
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise CheckpointError(
            f"{config_path} says {name} {quoted(epsilon)}, expected a small number such as 1e-05."
        )
    rescale_every = config.get("rescale_every")
    if rescale_every is None or not shape.rescale_every:
        rescale_every = shape.rescale_every
    if type(rescale_every) is not int or rescale_every < 0:
        raise CheckpointError(
            f"{config_path} says rescale_every {quoted(rescale_every)}, expected a whole number "
            "of blocks such as 6, or 0 for never."
        )
    divisor = config.get("head_size_divisor")
    if divisor is None:
        divisor = shape.head_size_divisor
    if type(divisor) is not int or divisor < 1:
        raise CheckpointError(
            f"{config_path} says head_size_divisor {quoted(divisor)}, expected a whole number such "
            "as 8."
        )
    return replace(
        shape,
        layer_norm_epsilon=float(epsilon),
        rescale_every=rescale_every,
        head_size_divisor=divisor,
    )
