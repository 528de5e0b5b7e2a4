"""What the RWKV versions share in PyTorch: embedding, blocks, head, in two forms.

The parallel form is what training needs, the stepwise form is that of inference. Both work on a
compact vocabulary: the tokens that the questions use have rows of their own, and one more row, the
last, stands for every other token of the World vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCAB_SIZE = 65536

Cast = Callable[[Tensor], Tensor]


def exact(x: Tensor) -> Tensor:
    """Float32 as it is."""
    return x


def shifted(x: Tensor) -> Tensor:
    """x [T, B, D] one step later, zero first: what a fresh state holds."""
    return functional.pad(x, (0, 0, 0, 0, 1, 0))[:-1]


class TimeBranch(nn.Module, ABC):
    """A time mix: `forward` over x [T, B, D], `step` over x [B, D].

    Both take and give what the first block hands to all others, None where a version has no such
    thing. `forward` also gives a penalty that training adds to the loss.
    """

    @abstractmethod
    def step(
        self, x: Tensor, first: Tensor | None, state: Tensor, cast: Cast
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, D] to the addend; state [B, rows, D], changed in place."""


class ChannelBranch(nn.Module, ABC):
    """A channel mix: `forward` over x [T, B, D], `step` over x [B, D]."""

    @abstractmethod
    def step(self, x: Tensor, state: Tensor, cast: Cast) -> Tensor:
        """x [B, D] to the addend; state [B, rows, D], changed in place."""


class Block(nn.Module):
    def __init__(self, size: int, attention: TimeBranch, feed_forward: ChannelBranch) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(size)
        self.ln2 = nn.LayerNorm(size)
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        mixed, first, penalty = self.attention(self.ln1(x), first)
        x = x + mixed
        return x + self.feed_forward(self.ln2(x)), first, penalty

    def step(
        self, x: Tensor, first: Tensor | None, state: Tensor, cast: Cast
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, D]; state [B, rows, D], changed in place."""
        mixed, first = self.attention.step(cast(self.ln1(x)), first, state, cast)
        x = cast(x + mixed)
        return cast(x + self.feed_forward.step(cast(self.ln2(x)), state, cast)), first


class LanguageModel(nn.Module, ABC):
    """`used` rows of their own and one shared row, of embedding and of head."""

    def __init__(self, used: int, size: int, layers: int) -> None:
        super().__init__()
        self.used, self.size, self.layers = used, size, layers
        self.embeddings = nn.Parameter(torch.randn(used + 1, size) * 0.1)
        self.pre_ln = nn.LayerNorm(size)
        self.blocks = nn.ModuleList(self.block(i) for i in range(layers))
        self.ln_out = nn.LayerNorm(size)
        self.head = nn.Parameter(torch.randn(used + 1, size) * 0.5 / size**0.5)
        # The shared row stands in the softmax once for every token that it serves.
        self.count: Tensor
        self.register_buffer("count", torch.zeros(used + 1), persistent=False)
        self.count[-1] = math.log(VOCAB_SIZE - used)

    @abstractmethod
    def block(self, layer: int) -> Block:
        """A new block with the values that training begins with."""

    @abstractmethod
    def new_state(self, batch: int) -> Tensor:
        """The state [L, batch, rows, D] before the first token."""

    @abstractmethod
    def stored(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The published name and shape of the parameter `name`."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [T, B] (compact) to logits [T, B, used + 1], and the blocks' penalties."""
        x = self.pre_ln(functional.embedding(tokens, self.embeddings))
        first, penalties = None, x.new_zeros(())
        for block in self.blocks:
            x, first, penalty = block(x, first)
            penalties = penalties + penalty
        return functional.linear(self.ln_out(x), self.head), penalties

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log probability of one token of each row, [.., used + 1]."""
        return logits - torch.logsumexp(logits + self.count, -1, keepdim=True)

    def step(self, tokens: Tensor, state: Tensor, cast: Cast = exact) -> Tensor:
        """tokens [B] (compact), state [L, B, rows, D] changed in place, to logits [B, used + 1].

        `cast` rounds every intermediate value, as a format that computes in float16 does.
        """
        x = cast(self.pre_ln(functional.embedding(tokens, self.embeddings)))
        first = None
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, first = block.step(x, first, state[i], cast)
        return functional.linear(cast(self.ln_out(x)), self.head)
