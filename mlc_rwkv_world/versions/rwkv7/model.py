"""RWKV-7: time mix with a value residual, channel mix, block, model.

Formulas follow BlinkDL's inference package `rwkv` 0.8.32 and RWKV-LM `RWKV-v7`, names BlinkDL's
checkpoints. Vectors and all of the recurrence are float32; the products compute in the model's
compute type. Each branch of a block is one part, see `parts`.
"""

from __future__ import annotations

from functools import partial

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.checkpoint.rwkv7 import RANKS
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.backbone import Backbone, Block, Carried
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import spans
from mlc_rwkv_world.model.layers import LayerNorm, Linear
from mlc_rwkv_world.model.parts import make
from mlc_rwkv_world.model.segments import Segments
from mlc_rwkv_world.model.state import State
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.versions.matrices import (
    ATT_X,
    FFN_X,
    WKV,
    fields,
    head_epsilon,
    require_heads,
)
from mlc_rwkv_world.versions.rwkv7.parts import MIXES, VECTORS, WEIGHTS


def _checked(config: ModelConfig) -> ModelConfig:
    """UsageError where the sizes are not those of an RWKV-7."""
    require_heads(config)
    for name, rank in ranks(config).items():
        # The only block of a model takes no share of a value.
        if not rank and (name != "v" or config.num_hidden_layers > 1):
            raise UsageError(f"model_config: the rank of {name}1 and {name}2 is missing.")
    return config


def ranks(config: ModelConfig) -> dict[str, int]:
    """The ranks of the small products, by the letter that their names begin with."""
    return {letter: getattr(config, field) for letter, field in RANKS.items()}


class TimeMix(nn.Module):  # type: ignore[misc]
    """`x + Wo ((norm(S r) + (r k r_k) v) * g)`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_size
        self.layer = layer
        self.dtype = dtype
        self.head_size = head
        self.span = spans(fields(config))
        self.float32_keys = config.float32_keys
        # Block 0 makes the value that the others take some of.
        self.ranks = {n: rank for n, rank in ranks(config).items() if n != "v" or layer}
        for name in MIXES:
            setattr(self, f"x_{name}", nn.Parameter((size,), "float32"))
        for name, rank in self.ranks.items():
            if name != "g":
                setattr(self, f"{name}0", nn.Parameter((size,), "float32"))
            setattr(self, f"{name}1", Linear(size, rank, fmt.low_rank))
            setattr(self, f"{name}2", Linear(rank, size, fmt.low_rank))
        self.k_k = nn.Parameter((size,), "float32")
        self.k_a = nn.Parameter((size,), "float32")
        self.r_k = nn.Parameter((size // head, head), "float32")
        self.receptance = Linear(size, size, fmt.matrix)
        self.key = Linear(size, size, fmt.matrix)
        self.value = Linear(size, size, fmt.matrix)
        self.output = Linear(size, size, fmt.matrix)
        self.ln_x = LayerNorm(size, head_epsilon(config))

    def forward(
        self, carried: Carried, norm: LayerNorm, segments: Segments, state: State
    ) -> Carried:
        """The residual [T, D] of the compute type and, but before block 0, its value; both after.

        The value is float32: what a block in float32 hands on stays whole.
        """
        x, *value_first = carried
        learned = {
            role: getattr(self, role) for role in (*WEIGHTS, *VECTORS) if hasattr(self, role)
        }
        outs = [(x.shape, self.dtype)] + ([] if value_first else [(x.shape, "float32")])
        part = make(
            "rwkv7.time_mix",
            {
                "x": x,
                "norm": norm,
                "mix": [getattr(self, f"x_{name}") for name in MIXES],
                **learned,
                "output": self.output,
                "value_first": value_first,
                OFFSETS: segments.offsets,
            },
            outs,
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            of_previous=True,
            head_eps=self.ln_x.eps,
            head_size=self.head_size,
            float32_keys=self.float32_keys,
            ranks=self.ranks,
        )
        x, *made = state.emit(part, self.layer, [self.span[ATT_X], self.span[WKV]])
        return (x, *(value_first or made))


class ChannelMix(nn.Module):  # type: ignore[misc]
    """`x + Wv relu(Wk xk)^2`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size, hidden = config.hidden_size, config.intermediate_size
        self.layer = layer
        self.dtype = dtype
        self.span = spans(fields(config))[FFN_X]
        self.x_k = nn.Parameter((size,), "float32")
        self.key = Linear(size, hidden, fmt.matrix)
        self.value = Linear(hidden, size, fmt.matrix)

    def forward(self, x: Tensor, norm: LayerNorm, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] of the compute type, before and after."""
        part = make(
            "rwkv7.channel_mix",
            {
                "x": x,
                "norm": norm,
                "mix": [self.x_k],
                "key": self.key,
                "value": self.value,
                OFFSETS: segments.offsets,
            },
            [(x.shape, self.dtype)],
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            of_previous=True,
            hidden=self.key.shape[0],
        )
        return state.emit(part, self.layer, [self.span])[0]


class RWKV7(Backbone):
    """Everything below the head. Raises UsageError where sizes are missing or do not fit."""

    def __init__(self, config: ModelConfig, fmt: Format, dtype: str) -> None:
        given = (_checked(config), fmt, dtype)
        super().__init__(*given, partial(_block, *given))


def _block(config: ModelConfig, fmt: Format, dtype: str, layer: int) -> Block:
    given = (config, layer, fmt, dtype)
    return Block(config, layer, TimeMix(*given), ChannelMix(*given))
