"""RWKV-6: RWKV-5 with mixes and decays that are made from the input; see `versions.rwkv5.model`."""

from __future__ import annotations

from functools import partial

from tvm.relax.frontend import nn

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.backbone import Backbone, Block, Carried
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import spans
from mlc_rwkv_world.model.layers import LayerNorm, Linear
from mlc_rwkv_world.model.segments import Segments
from mlc_rwkv_world.model.state import State
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.versions.matrices import FFN_X, fields, require_heads
from mlc_rwkv_world.versions.rwkv4.model import ChannelMix
from mlc_rwkv_world.versions.rwkv5.model import HeadsMix
from mlc_rwkv_world.versions.rwkv5.reference import PRODUCTS
from mlc_rwkv_world.versions.rwkv6.reference import CHANNEL_MIXES


class _Shares(nn.Module):  # type: ignore[misc]
    """What an input adds to each share of the one before it: a weight [D, rank] for each mix."""

    def __init__(self, size: int, rank: int, fmt: Format) -> None:
        super().__init__()
        for mix in MIXES:
            setattr(self, mix, Linear(rank, size, fmt.low_rank))


class TimeMix(HeadsMix):
    """With mixes and decays that are made from the input."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__(config, layer, fmt, dtype, PRODUCTS)
        size = config.hidden_size
        self.ranks = (config.mix_low_rank_dim, config.decay_low_rank_dim)
        mixing, decay = self.ranks
        for mix in f"x{MIXES}":
            setattr(self, f"time_maa_{mix}", nn.Parameter((size,), "float32"))
        self.time_maa_w1 = Linear(size, len(MIXES) * mixing, fmt.low_rank)
        self.time_maa_w2 = _Shares(size, mixing, fmt)
        self.time_decay = nn.Parameter((size,), "float32")
        self.time_decay_w1 = Linear(size, decay, fmt.low_rank)
        self.time_decay_w2 = Linear(decay, size, fmt.low_rank)

    def forward(
        self, carried: Carried, norm: LayerNorm, segments: Segments, state: State
    ) -> Carried:
        """The residual [T, D] of the compute type, before and after."""
        learned = {
            "mix": [getattr(self, f"time_maa_{mix}") for mix in f"x{MIXES}"],
            "mix_1": self.time_maa_w1,
            **{f"mix_{mix}": getattr(self.time_maa_w2, mix) for mix in MIXES},
            "decay": self.time_decay,
            "decay_1": self.time_decay_w1,
            "decay_2": self.time_decay_w2,
        }
        given = (carried, norm, segments, state)
        return self.emit("rwkv6.time_mix", learned, *given, ranks=self.ranks)


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
