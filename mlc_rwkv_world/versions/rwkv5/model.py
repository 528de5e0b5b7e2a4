"""RWKV-5: time mix; the channel mix is RWKV-4's.

Formulas follow BlinkDL's inference package `rwkv` 0.8.32, names BlinkDL's checkpoints and Hugging
Face's. Vectors and all of the recurrence are float32; the products compute in the model's compute
type. Each branch of a block is one part, see `parts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tvm.relax.frontend import nn

from mlc_rwkv_world.artifact.abi import OFFSETS
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
from mlc_rwkv_world.versions.rwkv4.model import ChannelMix
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS


class HeadsMix(nn.Module):  # type: ignore[misc]
    """`x + Wo (norm(r S) * silu(Wg xg))`, as RWKV-5 and 6 have it after their mixes and decays."""

    def __init__(
        self, config: ModelConfig, layer: int, fmt: Format, dtype: str, products: Sequence[str]
    ) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_size
        self.layer = layer
        self.dtype = dtype
        self.head_size = head
        self.span = spans(fields(config))
        self.float32_keys = config.float32_keys
        self.products = tuple(products)
        self.time_first = nn.Parameter((size // head, head), "float32")
        for name in (*products, "output"):
            setattr(self, name, Linear(size, size, fmt.matrix))
        self.ln_x = LayerNorm(size, head_epsilon(config))

    def emit(
        self,
        name: str,
        learned: Mapping[str, Any],
        carried: Carried,
        norm: LayerNorm,
        segments: Segments,
        state: State,
        **attrs: Any,
    ) -> Carried:
        """The part `name`: the residual [T, D] of the compute type, before and after.

        `learned` are its mixes and its decay, by role; `attrs` what else it says.
        """
        (x,) = carried
        part = make(
            name,
            {
                "x": x,
                "norm": norm,
                **learned,
                **{role: getattr(self, role) for role in (*self.products, "output", "ln_x")},
                "first": self.time_first,
                OFFSETS: segments.offsets,
            },
            [(x.shape, self.dtype)],
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            head_eps=self.ln_x.eps,
            head_size=self.head_size,
            float32_keys=self.float32_keys,
            **attrs,
        )
        return tuple(state.emit(part, self.layer, [self.span[ATT_X], self.span[WKV]]))


class TimeMix(HeadsMix):
    """With fixed mixes and decays."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        products = PRODUCTS if config.attention_gate else PRODUCTS[:3]
        super().__init__(config, layer, fmt, dtype, products)
        size, head = config.hidden_size, config.head_size
        self.time_decay = nn.Parameter((size // head, head), "float32")
        for name in products:
            setattr(self, f"time_mix_{name}", nn.Parameter((size,), "float32"))

    def forward(
        self, carried: Carried, norm: LayerNorm, segments: Segments, state: State
    ) -> Carried:
        """The residual [T, D] of the compute type, before and after."""
        mix = [getattr(self, f"time_mix_{name}") for name in self.products]
        learned = {"mix": mix, "decay": self.time_decay}
        return self.emit("rwkv5.time_mix", learned, carried, norm, segments, state)


class RWKV5(Backbone):
    """Everything below the head. Raises UsageError where sizes do not fit."""

    def __init__(self, config: ModelConfig, fmt: Format, dtype: str) -> None:
        require_heads(config)
        super().__init__(config, fmt, dtype, partial(_block, config, fmt, dtype))


def _block(config: ModelConfig, fmt: Format, dtype: str, layer: int) -> Block:
    given, span = (config, layer, fmt, dtype), spans(fields(config))[FFN_X]
    return Block(config, layer, TimeMix(*given), ChannelMix(*given, span))
