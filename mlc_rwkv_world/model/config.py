"""The configuration of a model, as `mlc-chat-config.json` stores it under `model_config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model import fp32_layers

DEFAULT_PREFILL_CHUNK = 512
DEFAULT_MAX_BATCH = 8
_MOST_BLOCKS = 1024


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a World model and the choices that its library is built with.

    `head_size` and `num_heads` carry no meaning in RWKV-4; serving engines require them of every
    recurrent model. `head_size_divisor`, squared, is what the normalization of heads adds to the
    variance in `layer_norm_epsilon`; `*_low_rank_dim` are the ranks of the small products of
    RWKV-6 and 7, 0 where there are none; `attention_gate` says whether an RWKV-5 has a gate.
    `rescale_every` n > 0 says that the stored weights of block i's two output products are divided
    by 2^(i // n), and that the residual is halved after every
    n-th block.

    `fp32_layers` are the blocks that compute in float32 where the model computes in float16; None
    stands for those that a version knows this shape to need, see `versions.table.settled`;
    `fp32_reasons` say why, where that was measured. `float32_keys` says that the products whose
    results only the recurrence reads (att.key, att.value) give float32 out of float16.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    attention_hidden_size: int = 0
    model_version: int = 4
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 0
    fp32_layers: Sequence[int] | None = None
    fp32_reasons: Sequence[str] = ()
    float32_keys: bool = True
    head_size: int = 64
    num_heads: int = 0
    head_size_divisor: int = 8
    decay_low_rank_dim: int = 0
    a_low_rank_dim: int = 0
    v_low_rank_dim: int = 0
    gate_low_rank_dim: int = 0
    mix_low_rank_dim: int = 0
    attention_gate: bool = True
    context_window_size: int = -1
    prefill_chunk_size: int = DEFAULT_PREFILL_CHUNK
    max_batch_size: int = DEFAULT_MAX_BATCH
    tensor_parallel_shards: int = 1

    def __post_init__(self) -> None:
        if not self.attention_hidden_size:
            object.__setattr__(self, "attention_hidden_size", self.hidden_size)
        for field in (
            "head_size",
            "head_size_divisor",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "vocab_size",
            "attention_hidden_size",
            "prefill_chunk_size",
            "max_batch_size",
        ):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise UsageError(f"model_config: {field} is {value!r}; it must be at least 1.")
        names = [field.name for field in dataclasses.fields(self)]
        for field in (name for name in names if name.endswith("_low_rank_dim")):
            value = getattr(self, field)
            if type(value) is not int or value < 0:
                raise UsageError(f"model_config: {field} is {value!r}; it is a rank, or 0.")
        if self.num_hidden_layers > _MOST_BLOCKS:
            raise UsageError(
                f"model_config: num_hidden_layers is {self.num_hidden_layers}; it is at most "
                f"{_MOST_BLOCKS}."
            )
        epsilon = self.layer_norm_epsilon
        if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
            raise UsageError(
                f"model_config: layer_norm_epsilon is {epsilon!r}; it is a small number."
            )
        if type(self.model_version) is not int:
            raise UsageError(
                f"model_config: model_version is {self.model_version!r}; it is RWKV's, as 4."
            )
        if type(self.attention_gate) is not bool:
            raise UsageError(
                f"model_config: attention_gate is {self.attention_gate!r}; it is true or false."
            )
        if not isinstance(self.fp32_reasons, list | tuple):
            raise UsageError(
                f"model_config: fp32_reasons is {self.fp32_reasons!r}; it is a list of texts."
            )
        if type(self.rescale_every) is not int or self.rescale_every < 0:
            raise UsageError(
                f"model_config: rescale_every is {self.rescale_every!r}; it is a number of blocks, "
                "or 0 for never."
            )
        object.__setattr__(self, "fp32_layers", self._fp32_layers())
        object.__setattr__(self, "fp32_reasons", tuple(map(str, self.fp32_reasons)))
        if not self.num_heads:
            object.__setattr__(self, "num_heads", max(1, self.hidden_size // self.head_size))
        if self.attention_hidden_size != self.hidden_size:
            raise UsageError(
                f"model_config: attention_hidden_size is {self.attention_hidden_size}, "
                f"hidden_size {self.hidden_size}; World models have them equal."
            )
        if self.tensor_parallel_shards != 1:
            raise UsageError(
                f"model_config: tensor_parallel_shards is {self.tensor_parallel_shards}; "
                "RWKV World models run on one device."
            )

    def _fp32_layers(self) -> tuple[int, ...] | None:
        if self.fp32_layers is None:
            return None
        if not isinstance(self.fp32_layers, list | tuple):
            raise UsageError(
                f"model_config: fp32_layers is {self.fp32_layers!r}; it is a list of block numbers."
            )
        return fp32_layers.checked(self.fp32_layers, self.num_hidden_layers)

    def epsilon(self, block: int) -> float:
        """What normalizations of a block add to the variance, which each halving quarters."""
        return self.layer_norm_epsilon * 0.25 ** self.halvings(block)

    def halvings(self, block: int) -> int:
        """How often the residual has been halved where it enters a block."""
        return block // self.rescale_every if self.rescale_every else 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """From a JSON object; other fields are ignored. Raises UsageError where one is missing."""
        fields = dataclasses.fields(cls)
        known = {field.name for field in fields}
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values]:
            raise UsageError(f"model_config: {', '.join(missing)} missing.")
        return cls(**{key: value for key, value in values.items() if key in known})

    def as_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads back."""
        return dataclasses.asdict(self)
