"""RWKV-6: RWKV-5 with mixes and decays that are made from the input; see `versions.rwkv5.model`."""

from __future__ import annotations

from functools import partial

from tvm.relax.frontend import nn

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
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
from mlc_rwkv_world.versions.rwkv4.model import ChannelMix
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS
from mlc_rwkv_world.versions.rwkv6.reference import CHANNEL_MIXES


class _Shares(nn.Module):  # type: ignore[misc]
    """What an input adds to each share of the one before it: a weight [D, rank] for each mix."""

    def __init__(self, size: int, rank: int, fmt: Format) -> None:
        super().__init__()
        for mix in MIXES:
            setattr(self, mix, Linear(rank, size, fmt.low_rank))


class TimeMix(nn.Module):  # type: ignore[misc]
    """`x + Wo (norm(r S) * silu(Wg xg))`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_size
        self.ranks = (config.mix_low_rank_dim, config.decay_low_rank_dim)
        mixing, decay = self.ranks
        self.layer = layer
        self.dtype = dtype
        self.head_size = head
        self.span = spans(fields(config))
        self.float32_keys = config.float32_keys
        for mix in f"x{MIXES}":
            setattr(self, f"time_maa_{mix}", nn.Parameter((size,), "float32"))
        self.time_maa_w1 = Linear(size, len(MIXES) * mixing, fmt.low_rank)
        self.time_maa_w2 = _Shares(size, mixing, fmt)
        self.time_decay = nn.Parameter((size,), "float32")
        self.time_decay_w1 = Linear(size, decay, fmt.low_rank)
        self.time_decay_w2 = Linear(decay, size, fmt.low_rank)
        self.time_first = nn.Parameter((size // head, head), "float32")
        for name in (*PRODUCTS, "output"):
            setattr(self, name, Linear(size, size, fmt.matrix))
        self.ln_x = LayerNorm(size, head_epsilon(config))

    def forward(
        self, carried: Carried, norm: LayerNorm, segments: Segments, state: State
    ) -> Carried:
        """The residual [T, D] of the compute type, before and after."""
        (x,) = carried
        part = make(
            "rwkv6.time_mix",
            {
                "x": x,
                "norm": norm,
                "mix": [getattr(self, f"time_maa_{mix}") for mix in f"x{MIXES}"],
                "mix_1": self.time_maa_w1,
                **{f"mix_{mix}": getattr(self.time_maa_w2, mix) for mix in MIXES},
                "decay": self.time_decay,
                "decay_1": self.time_decay_w1,
                "decay_2": self.time_decay_w2,
                "first": self.time_first,
                **{name: getattr(self, name) for name in (*PRODUCTS, "output", "ln_x")},
                OFFSETS: segments.offsets,
            },
            [(x.shape, self.dtype)],
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            head_eps=self.ln_x.eps,
            head_size=self.head_size,
            float32_keys=self.float32_keys,
            ranks=self.ranks,
        )
        return tuple(state.emit(part, self.layer, [self.span[ATT_X], self.span[WKV]]))


class RWKV6(Backbone):
    """Everything below the head. Raises UsageError where sizes are missing or do not fit."""

    def __init__(self, config: ModelConfig, fmt: Format, dtype: str) -> None:
        require_heads(config)
        for name in ("mix_low_rank_dim", "decay_low_rank_dim"):
            if not getattr(config, name):
                raise UsageError(f"model_config: {name} is missing.")
        super().__init__(config, fmt, dtype, partial(_block, config, fmt, dtype))


def _block(config: ModelConfig, fmt: Format, dtype: str, layer: int) -> Block:
    given, span = (config, layer, fmt, dtype), spans(fields(config))[FFN_X]
    mixing = ChannelMix(*given, span, CHANNEL_MIXES, of_previous=True)
    return Block(config, layer, TimeMix(*given), mixing)
