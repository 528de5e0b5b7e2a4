"""The model that is looked at: an artifact, or a checkpoint as a format would hold it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.search import Found, find
from mlc_rwkv_world.checkpoint import Checkpoint, find_vocabulary, open_checkpoint
from mlc_rwkv_world.convert.model_config import model_config
from mlc_rwkv_world.errors import ArtifactError, NotFoundError, UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fp32_layers import parse
from mlc_rwkv_world.numerics.model import Model
from mlc_rwkv_world.numerics.weights import ArtifactWeights, CheckpointWeights
from mlc_rwkv_world.storage import Format, format_named
from mlc_rwkv_world.tokenizer import WorldTokenizer

REFERENCE_FORMAT = "q0f32"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model whose operations can be looked at: what it computes, and where it came from."""

    name: str
    model: Model
    tokenizer: WorldTokenizer
    checkpoint: Checkpoint | None = None
    found: Found | None = None

    def with_bytes(self, int8: bool) -> Subject:
        """The same model; `int8` is whether inputs rounded to bytes are measured."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, int8=int8))

    def in_float32(self, config: ModelConfig | None = None) -> Model:
        """The same model in float32: a checkpoint's own weights, an artifact's as it stores them.

        `config` is that of the model to compare with, whose residual may be halved on its way.
        """
        ours = self.model
        if self.checkpoint is None:
            return dataclasses.replace(ours, compute_dtype="float32", int8=False)
        fmt = format_named(REFERENCE_FORMAT)
        shared = config or ours.config
        weights = CheckpointWeights(self.checkpoint, shared, fmt)
        return Model(shared, fmt, "float32", weights)


def open_subject(
    model: str | Path,
    *,
    quantization: str | None = None,
    compute_dtype: str = "auto",
    fp32_layers: str | None = None,
    float32_keys: bool = True,
) -> Subject:
    """Opens an artifact by name or path, or else the checkpoint at that path.

    A checkpoint is taken as `quantization` (default q0f16) would store it; an artifact has its own.
    `compute_dtype` "auto" is the type that the format computes in on a GPU. `fp32_layers` replaces
    the blocks that the artifact, or the model's shape, names. Raises the errors of
    `mlc_rwkv_world.errors`.
    """
    try:
        found = find(model)
    except NotFoundError:
        if not expanded(model).exists():
            raise
        checkpoint = open_checkpoint(expanded(model))
        fmt = format_named(quantization or "q0f16")
        config = model_config(checkpoint, fmt, float32_keys=float32_keys)
        config = _with_layers(config, fp32_layers)
        return checkpoint_subject(checkpoint, config, fmt, _dtype(compute_dtype, fmt))
    if quantization is not None:
        raise UsageError(
            f"--quantization is for checkpoints; the artifact {found.name} is quantized already."
        )
    chat = ChatConfig.read(found.params)
    fmt = format_named(chat.quantization)
    config = _with_layers(_config(chat.path), fp32_layers)
    weights = ArtifactWeights(ParameterIndex.read(found.params), config, fmt)
    tokenizer = WorldTokenizer.from_file(found.params / chat.tokenizer_file)
    computed = Model(config, fmt, _dtype(compute_dtype, fmt), weights)
    return Subject(found.name, computed, tokenizer, found=found)


def _config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(Fields.read(path).object("model_config").values)
    except UsageError as error:
        raise ArtifactError(f"{path}: {error} Build or copy the artifact again.") from None


def checkpoint_subject(
    checkpoint: Checkpoint, config: ModelConfig, fmt: Format, compute_dtype: str
) -> Subject:
    """A checkpoint as a build of this configuration would hold it and compute with it."""
    vocabulary = find_vocabulary(checkpoint.path)
    tokenizer = (
        WorldTokenizer.from_file(vocabulary) if vocabulary is not None else WorldTokenizer.default()
    )
    weights = CheckpointWeights(checkpoint, config, fmt)
    model = Model(config, fmt, compute_dtype, weights)
    return Subject(checkpoint.name, model, tokenizer, checkpoint=checkpoint)


def _with_layers(config: ModelConfig, fp32_layers: str | None) -> ModelConfig:
    if fp32_layers is None:
        return config
    blocks = parse(fp32_layers, config.num_hidden_layers)
    return dataclasses.replace(config, fp32_layers=blocks)


def _dtype(asked: str, fmt: Format) -> str:
    if asked not in ("auto", "float16", "float32"):
        raise UsageError(f"--compute-dtype {asked!r}: give auto, float16 or float32.")
    return fmt.dtype if asked == "auto" else asked
