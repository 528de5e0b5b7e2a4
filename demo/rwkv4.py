"""RWKV-4 in PyTorch, in the parallel form that training needs and the stepwise form of inference.

Both forms work on a compact vocabulary: the tokens that the questions use have rows of their own,
and one more row, the last, stands for every other token of the World vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCAB_SIZE = 65536

Cast = Callable[[Tensor], Tensor]


def exact(x: Tensor) -> Tensor:
    """Float32 as it is."""
    return x


class LinearScan(torch.autograd.Function):
    """s[t] = decay * s[t-1] + x[t] over x [T, B, C] and decay [C], from s[-1] = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[0] = x[0]
        for t in range(1, x.shape[0]):
            torch.addcmul(x[t], out[t - 1], decay, out=out[t])
        ctx.save_for_backward(out, decay)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, decay = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(grad)
        grad_x[-1] = grad[-1]
        for t in range(grad.shape[0] - 2, -1, -1):
            torch.addcmul(grad[t], grad_x[t + 1], decay, out=grad_x[t])
        grad_decay = (grad_x[1:] * out[:-1]).sum((0, 1))
        return grad_x, grad_decay


def linear_scan(x: Tensor, decay: Tensor) -> Tensor:
    out: Tensor = LinearScan.apply(x, decay)  # type: ignore[no-untyped-call]
    return out


def shifted(x: Tensor) -> Tensor:
    """x [T, B, D] one step later, zero first: what a fresh state holds."""
    return functional.pad(x, (0, 0, 0, 0, 1, 0))[:-1]


class TimeMix(nn.Module):
    def __init__(self, size: int, layer: int, layers: int) -> None:
        super().__init__()
        depth = layer / max(1, layers - 1)
        nearness = 1 - layer / layers
        channel = torch.arange(size) / (size - 1)
        ramp = torch.arange(size) / size
        self.time_decay = nn.Parameter(-5 + 8 * channel ** (0.7 + 1.3 * depth))
        zigzag = 0.5 * ((torch.arange(size) + 1) % 3 - 1)
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        self.time_mix_key = nn.Parameter(ramp**nearness)
        self.time_mix_value = nn.Parameter(ramp**nearness + 0.3 * depth)
        self.time_mix_receptance = nn.Parameter(ramp ** (0.5 * nearness))
        self.key = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.value = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.receptance = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.output = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, B, D] to the block's addend, and the keys."""
        last = shifted(x)
        k = functional.linear(torch.lerp(last, x, self.time_mix_key), self.key)
        v = functional.linear(torch.lerp(last, x, self.time_mix_value), self.value)
        r = functional.linear(torch.lerp(last, x, self.time_mix_receptance), self.receptance)
        # Training keeps the keys small, so plain sums of exponentials do not overflow.
        e = torch.exp(k)
        decay = torch.exp(-torch.exp(self.time_decay))
        sums = shifted(linear_scan(torch.cat((e * v, e), -1), torch.cat((decay, decay))))
        a, b = sums.chunk(2, -1)
        now = e * torch.exp(self.time_first)
        wkv = (a + now * v) / (b + now)
        return functional.linear(torch.sigmoid(r) * wkv, self.output), k

    def step(self, x: Tensor, state: Tensor, cast: Cast) -> Tensor:
        """x [B, D], state rows att_x, a, b, p of [B, 5, D], changed in place."""
        last, a, b, p = state[:, 0].clone(), state[:, 1], state[:, 2], state[:, 3]
        k = functional.linear(cast(torch.lerp(last, x, self.time_mix_key)), self.key)
        v = functional.linear(cast(torch.lerp(last, x, self.time_mix_value)), self.value)
        r = functional.linear(cast(torch.lerp(last, x, self.time_mix_receptance)), self.receptance)
        k, v, r = cast(k), cast(v), cast(r)
        here = self.time_first + k
        q = torch.maximum(p, here)
        old, new = torch.exp(p - q), torch.exp(here - q)
        wkv = cast((old * a + new * v) / (old * b + new))
        faded = p - torch.exp(self.time_decay)
        q = torch.maximum(faded, k)
        old, new = torch.exp(faded - q), torch.exp(k - q)
        state[:, :4] = torch.stack((x, old * a + new * v, old * b + new, q), 1)
        return cast(functional.linear(cast(cast(torch.sigmoid(r)) * wkv), self.output))


class ChannelMix(nn.Module):
    def __init__(self, size: int, layer: int, layers: int) -> None:
        super().__init__()
        ramp = (torch.arange(size) / size) ** (1 - layer / layers)
        self.time_mix_key = nn.Parameter(ramp)
        self.time_mix_receptance = nn.Parameter(ramp.clone())
        self.key = nn.Parameter(torch.randn(4 * size, size) / size**0.5)
        self.receptance = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.value = nn.Parameter(torch.randn(size, 4 * size) * 0.3 / (4 * size) ** 0.5)

    def mix(self, x: Tensor, last: Tensor, cast: Cast) -> Tensor:
        k = functional.linear(cast(torch.lerp(last, x, self.time_mix_key)), self.key)
        r = functional.linear(cast(torch.lerp(last, x, self.time_mix_receptance)), self.receptance)
        k = cast(cast(torch.relu(k)) ** 2)
        return cast(cast(torch.sigmoid(cast(r))) * cast(functional.linear(k, self.value)))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, shifted(x), exact)

    def step(self, x: Tensor, state: Tensor, cast: Cast) -> Tensor:
        """x [B, D], state row ffn_x of [B, 5, D], changed in place."""
        last = state[:, 4].clone()
        state[:, 4] = x
        return self.mix(x, last, cast)


class Block(nn.Module):
    def __init__(self, size: int, layer: int, layers: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(size)
        self.ln2 = nn.LayerNorm(size)
        self.attention = TimeMix(size, layer, layers)
        self.feed_forward = ChannelMix(size, layer, layers)


class Rwkv4(nn.Module):
    """`used` rows of their own and one shared row, of embedding and of head."""

    def __init__(self, used: int, size: int, layers: int) -> None:
        super().__init__()
        self.used, self.size, self.layers = used, size, layers
        self.embeddings = nn.Parameter(torch.randn(used + 1, size) * 0.1)
        self.pre_ln = nn.LayerNorm(size)
        self.blocks = nn.ModuleList(Block(size, i, layers) for i in range(layers))
        self.ln_out = nn.LayerNorm(size)
        self.head = nn.Parameter(torch.randn(used + 1, size) * 0.5 / size**0.5)
        # The shared row stands in the softmax once for every token that it serves.
        self.count: Tensor
        self.register_buffer("count", torch.zeros(used + 1), persistent=False)
        self.count[-1] = math.log(VOCAB_SIZE - used)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [T, B] (compact) to logits [T, B, used + 1], and the mean square of large keys."""
        x = self.pre_ln(functional.embedding(tokens, self.embeddings))
        excess = x.new_zeros(())
        for block in self.blocks:
            assert isinstance(block, Block)
            mixed, k = block.attention(block.ln1(x))
            excess = excess + functional.relu(k.abs() - 8).square().mean()
            x = x + mixed
            x = x + block.feed_forward(block.ln2(x))
        return functional.linear(self.ln_out(x), self.head), excess

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log probability of one token of each row, [.., used + 1]."""
        return logits - torch.logsumexp(logits + self.count, -1, keepdim=True)

    def new_state(self, batch: int) -> Tensor:
        state = torch.zeros(self.layers, batch, 5, self.size)
        state[:, :, 3] = -1e30
        return state

    def step(self, tokens: Tensor, state: Tensor, cast: Cast = exact) -> Tensor:
        """tokens [B] (compact), state [L, B, 5, D] changed in place, to logits [B, used + 1].

        `cast` rounds every intermediate value, as a format that computes in float16 does.
        """
        x = cast(self.pre_ln(functional.embedding(tokens, self.embeddings)))
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = cast(x + block.attention.step(cast(block.ln1(x)), state[i], cast))
            x = cast(x + block.feed_forward.step(cast(block.ln2(x)), state[i], cast))
        return functional.linear(cast(self.ln_out(x)), self.head)
