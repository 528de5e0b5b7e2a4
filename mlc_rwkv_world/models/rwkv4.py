"""RWKV-4: time mix, channel mix, block, model.

Formulas follow BlinkDL's reference, RWKV-LM `RWKV-v4neo`. Vectors and the recurrence are float32;
the products compute in the model's compute type, float32 or float16.
"""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.models import operations as ops
from mlc_rwkv_world.models.config import ModelConfig
from mlc_rwkv_world.models.layers import Embedding, LayerNorm, Linear
from mlc_rwkv_world.models.segments import Segments
from mlc_rwkv_world.models.state import State
from mlc_rwkv_world.storage import Format

# Rows of the state of one layer: previous inputs of the two mixes, and the recurrence's
# numerator a, denominator b and exponent p.
ATT_X, ATT_A, ATT_B, ATT_P, FFN_X = range(5)
# A fresh state is zero, but for the exponent, which stands for log(0).
INITIAL_ROWS = (0.0, 0.0, 0.0, -1e30, 0.0)


def _mix(x: Tensor, previous: Tensor, ratio: Tensor, dtype: str) -> Tensor:
    return op.astype(x * ratio + previous * (1.0 - ratio), dtype)


class TimeMix(nn.Module):  # type: ignore[misc]
    """`Wo (sigmoid(Wr xr) * wkv(Wk xk, Wv xv))`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer = layer
        self.dtype = dtype
        # These two leave float16's range in small models before the recurrence bounds them.
        self.key_dtype = "float32" if config.float32_keys else dtype
        self.time_decay = nn.Parameter((size,), "float32")
        self.time_first = nn.Parameter((size,), "float32")
        self.time_mix_key = nn.Parameter((size,), "float32")
        self.time_mix_value = nn.Parameter((size,), "float32")
        self.time_mix_receptance = nn.Parameter((size,), "float32")
        self.key = Linear(size, size, fmt.matrix)
        self.value = Linear(size, size, fmt.matrix)
        self.receptance = Linear(size, size, fmt.matrix)
        self.output = Linear(size, size, fmt.matrix)

    def forward(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """x float32 [T, D] (normalized) to [T, D] of the compute type."""
        previous = segments.previous(x, state.get(self.layer, ATT_X))
        xk = _mix(x, previous, self.time_mix_key, self.dtype)
        xv = _mix(x, previous, self.time_mix_value, self.dtype)
        xr = _mix(x, previous, self.time_mix_receptance, self.dtype)
        k = op.astype(self.key(xk, out_dtype=self.key_dtype), "float32")
        v = op.astype(self.value(xv, out_dtype=self.key_dtype), "float32")
        r = op.sigmoid(op.astype(self.receptance(xr, out_dtype=self.dtype), "float32"))
        recurrence = [state.get(self.layer, row) for row in (ATT_A, ATT_B, ATT_P)]
        decay = op.negative(op.exp(self.time_decay))
        wkv, a, b, p = segments.wkv(k, v, decay, self.time_first, recurrence)
        state.set(self.layer, ATT_X, segments.last(x))
        state.set(self.layer, ATT_A, a)
        state.set(self.layer, ATT_B, b)
        state.set(self.layer, ATT_P, p)
        return self.output(op.astype(r * wkv, self.dtype), out_dtype=self.dtype)


class ChannelMix(nn.Module):  # type: ignore[misc]
    """`sigmoid(Wr xr) * (Wv relu(Wk xk)^2)`."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        size, hidden = config.hidden_size, config.intermediate_size
        self.layer = layer
        self.dtype = dtype
        self.time_mix_key = nn.Parameter((size,), "float32")
        self.time_mix_receptance = nn.Parameter((size,), "float32")
        self.key = Linear(size, hidden, fmt.matrix)
        self.receptance = Linear(size, size, fmt.matrix)
        self.value = Linear(hidden, size, fmt.matrix)

    def forward(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """x float32 [T, D] (normalized) to [T, D] of the compute type."""
        previous = segments.previous(x, state.get(self.layer, FFN_X))
        xk = _mix(x, previous, self.time_mix_key, self.dtype)
        xr = _mix(x, previous, self.time_mix_receptance, self.dtype)
        state.set(self.layer, FFN_X, segments.last(x))
        r = op.sigmoid(self.receptance(xr, out_dtype=self.dtype))
        k = op.square(op.relu(self.key(xk, out_dtype=self.dtype)))
        return r * self.value(k, out_dtype=self.dtype)


def _epsilon(config: ModelConfig, block: int) -> float:
    """What a normalization before a block adds to the variance, which each halving quarters."""
    return config.layer_norm_epsilon * 0.25 ** config.halvings(block)


class Block(nn.Module):  # type: ignore[misc]
    """Two residual branches: time mix, then channel mix."""

    def __init__(self, config: ModelConfig, layer: int, fmt: Format, dtype: str) -> None:
        super().__init__()
        self.layer = layer
        self.dtype = dtype
        self.halve = config.halvings(layer + 1) > config.halvings(layer)
        epsilon = _epsilon(config, layer)
        self.ln1 = LayerNorm(config.hidden_size, epsilon)
        self.ln2 = LayerNorm(config.hidden_size, epsilon)
        self.attention = TimeMix(config, layer, fmt, dtype)
        self.feed_forward = ChannelMix(config, layer, fmt, dtype)

    def forward(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] of the compute type, before and after."""
        x = ops.block_begin(x, self.layer)
        x = x + self.attention(self.ln1(x), segments, state)
        x = x + self.feed_forward(self.ln2(x), segments, state)
        if self.halve:
            x = x * 0.5
        return ops.block_end(x, self.layer)


class RWKV4(nn.Module):  # type: ignore[misc]
    """Embedding, normalization, blocks, normalization: everything below the head."""

    def __init__(self, config: ModelConfig, fmt: Format, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.embeddings = Embedding(config.vocab_size, config.hidden_size, fmt.matrix)
        self.pre_ln = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.blocks = nn.ModuleList(
            [Block(config, i, fmt, dtype) for i in range(config.num_hidden_layers)]
        )
        self.ln_out = LayerNorm(config.hidden_size, _epsilon(config, config.num_hidden_layers))

    def embed(self, ids: Tensor) -> Tensor:
        """ids int32 [T] to the first residual [T, D] of the compute type."""
        return op.astype(self.pre_ln(self.embeddings(ids)), self.dtype)

    def forward(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] to the head's input, the last token of each sequence, [B, D]."""
        for block in self.blocks:
            x = block(x, segments, state)
        # Cast first: a last block that computes in float32 then hands over what float16 could not.
        x = op.astype(x, "float32")
        return op.astype(self.ln_out(segments.last(x)), self.dtype)
