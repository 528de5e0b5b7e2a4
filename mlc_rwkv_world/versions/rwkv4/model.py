"""RWKV-4: time mix, channel mix, block, model.

Formulas follow BlinkDL's reference, RWKV-LM `RWKV-v4neo`. Vectors and the recurrence are float32;
the products compute in the model's compute type, float32 or float16. Each branch of a block is one
part, see `parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS
from mlc_rwkv_world.model.backbone import Backbone, Block, Carried
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import Field, Span, spans
from mlc_rwkv_world.model.layers import LayerNorm, Linear
from mlc_rwkv_world.model.parts import make
from mlc_rwkv_world.model.segments import Segments
from mlc_rwkv_world.model.state import State
from mlc_rwkv_world.storage import Format

# The rows that the reference numbers: the recurrence's a, b and p are one field, which kernels get
# whole. A fresh state is zero, but for the exponent p, which stands for log(0).
FIELDS = (Field("att_x"), Field("wkv", rows=3, fresh=(0.0, 0.0, -1e30)), Field("ffn_x"))
_ATT_X, _WKV, _FFN_X = spans(FIELDS)


class TimeMix(nn.Module):  # type: ignore[misc]
    """`x + Wo (sigmoid(Wr xr) * wkv(Wk xk, Wv xv))`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer = layer
        self.dtype = dtype
        # These two leave float16's range in small models before the recurrence bounds them.
        self.float32_keys = config.float32_keys
        self.time_decay = nn.Parameter((size,), "float32")
        self.time_first = nn.Parameter((size,), "float32")
        self.time_mix_key = nn.Parameter((size,), "float32")
        self.time_mix_value = nn.Parameter((size,), "float32")
        self.time_mix_receptance = nn.Parameter((size,), "float32")
        self.key = Linear(size, size, fmt.matrix)
        self.value = Linear(size, size, fmt.matrix)
        self.receptance = Linear(size, size, fmt.matrix)
        self.output = Linear(size, size, fmt.matrix)

    def forward(
        self, carried: Carried, norm: LayerNorm, segments: Segments, state: State
    ) -> Carried:
        """The residual [T, D] of the compute type, before and after."""
        (x,) = carried
        part = make(
            "rwkv4.time_mix",
            {
                "x": x,
                "norm": norm,
                "mix": [self.time_mix_key, self.time_mix_value, self.time_mix_receptance],
                "decay": self.time_decay,
                "first": self.time_first,
                "key": self.key,
                "value": self.value,
                "receptance": self.receptance,
                "output": self.output,
                OFFSETS: segments.offsets,
            },
            [(x.shape, self.dtype)],
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            float32_keys=self.float32_keys,
        )
        return tuple(state.emit(part, self.layer, [_ATT_X, _WKV]))


class ChannelMix(nn.Module):  # type: ignore[misc]
    """`factor * (x + sigmoid(Wr xr) * (Wv relu(Wk xk)^2))`, which RWKV-5 and 6 have too.

    `span` is its field of the state. `mixes` names the ratios of key and receptance; they are those
    of the previous input where they stand for that (`of_previous`).
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        fmt: Format,
        dtype: str,
        span: Span,
        mixes: Sequence[str] = ("time_mix_key", "time_mix_receptance"),
        *,
        of_previous: bool = False,
    ) -> None:
        super().__init__()
        size, hidden = config.hidden_size, config.intermediate_size
        self.layer = layer
        self.dtype = dtype
        self.factor = 0.5 if config.halvings(layer + 1) > config.halvings(layer) else 1.0
        self.span = span
        self.mixes = tuple(mixes)
        self.of_previous = of_previous
        for name in mixes:
            setattr(self, name, nn.Parameter((size,), "float32"))
        self.key = Linear(size, hidden, fmt.matrix)
        self.receptance = Linear(size, size, fmt.matrix)
        self.value = Linear(hidden, size, fmt.matrix)

    def forward(self, x: Tensor, norm: LayerNorm, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] of the compute type, before and after."""
        part = make(
            "rwkv4.channel_mix",
            {
                "x": x,
                "norm": norm,
                "mix": [getattr(self, name) for name in self.mixes],
                "key": self.key,
                "receptance": self.receptance,
                "value": self.value,
                OFFSETS: segments.offsets,
            },
            [(x.shape, self.dtype)],
            block=self.layer,
            compute=self.dtype,
            eps=norm.eps,
            of_previous=self.of_previous,
            hidden=self.key.shape[0],
            factor=self.factor,
        )
        return state.emit(part, self.layer, [self.span])[0]


class RWKV4(Backbone):
    """Everything below the head."""

    def __init__(self, config: ModelConfig, fmt: Format, dtype: str) -> None:
        super().__init__(config, fmt, dtype, partial(_block, config, fmt, dtype))


def _block(config: ModelConfig, fmt: Format, dtype: str, layer: int) -> Block:
    given = (config, layer, fmt, dtype)
    return Block(config, layer, TimeMix(*given), ChannelMix(*given, _FFN_X))
