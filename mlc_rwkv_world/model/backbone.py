"""What versions have around their blocks: the embedding before them, a normalization after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.layers import Embedding, LayerNorm
from mlc_rwkv_world.model.segments import Segments
from mlc_rwkv_world.model.state import State
from mlc_rwkv_world.storage import Format

# What passes from one block to the next; the residual [T, D] of the compute type comes first.
Carried = tuple[Tensor, ...]


class Block(nn.Module):  # type: ignore[misc]
    """Two residual branches, each behind its normalization: time mix, then channel mix.

    The time mix takes and gives what is carried, the channel mix the residual.
    """

    def __init__(self, config: ModelConfig, layer: int, time_mix: Any, channel_mix: Any) -> None:
        super().__init__()
        epsilon = config.epsilon(layer)
        self.ln1 = LayerNorm(config.hidden_size, epsilon)
        self.ln2 = LayerNorm(config.hidden_size, epsilon)
        self.attention = time_mix
        self.feed_forward = channel_mix

    def forward(self, carried: Carried, segments: Segments, state: State) -> Carried:
        """What is carried, before and after."""
        x, *more = self.attention(carried, self.ln1, segments, state)
        return (self.feed_forward(x, self.ln2, segments, state), *more)


class Backbone(nn.Module):  # type: ignore[misc]
    """Embedding, normalization, blocks, normalization: everything below the head.

    `block(number)` makes a block, which takes and gives what is carried: `(carried, segments,
    state) -> carried`.
    """

    def __init__(
        self, config: ModelConfig, fmt: Format, dtype: str, block: Callable[[int], Any]
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.embeddings = Embedding(config.vocab_size, config.hidden_size, fmt.matrix)
        self.pre_ln = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.blocks = nn.ModuleList([block(i) for i in range(config.num_hidden_layers)])
        self.ln_out = LayerNorm(config.hidden_size, config.epsilon(config.num_hidden_layers))

    def embed(self, ids: Tensor) -> Tensor:
        """ids int32 [T] to the first residual [T, D] of the compute type."""
        return op.astype(self.pre_ln(self.embeddings(ids)), self.dtype)

    def forward(self, x: Tensor, segments: Segments, state: State) -> Tensor:
        """The residual [T, D] to the head's input, the last token of each sequence, [B, D]."""
        carried: Carried = (x,)
        for block in self.blocks:
            carried = block(carried, segments, state)
        # Cast first: a last block that computes in float32 then hands over what float16 could not.
        x = op.astype(carried[0], "float32")
        return op.astype(self.ln_out(segments.last(x)), self.dtype)
