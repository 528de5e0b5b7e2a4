"""RWKV-7 in PyTorch, in the parallel form and stepwise.

Formulas: RWKV-7 "Goose" (arXiv 2503.14456), section 4, as BlinkDL's `rwkv` package computes them.
First values follow the spirit of RWKV-LM's trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from language_model import Block, Cast, ChannelBranch, LanguageModel, TimeBranch, exact, shifted
from torch import Tensor, nn
from torch.nn import functional

HEAD_SIZE = 64
# Of the four matrices of low rank; a multiple of a format's group of 32.
RANK = 32
# The least decay of one step is exp(-exp(-0.5)) = 0.545. Over 16 steps that is 6e-5, whose inverse
# float32 still bears.
CHUNK = 16
GROUP_NORM_EPS = 64e-5

# r, log of the decay, k, v, a, b, each [.., H, N], to y [.., H, N]
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def chunked(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """S[t] = S[t-1] (diag(w) + a b') + v k',  y[t] = S[t] r, from S = 0, all [T, B, H, N].

    T is a multiple of CHUNK. With D[t] the product of a chunk's decays up to t, S[t] / D[t] grows
    by u (b / D)' + v (k / D)' alone, u[t] = S[t-1] a: one triangular system for each chunk.
    """
    steps, batch, heads, size = r.shape

    def chunks(x: Tensor) -> Tensor:
        return x.view(-1, CHUNK, batch, heads, size).permute(0, 2, 3, 1, 4)

    log_w = chunks(log_w)
    decay = log_w.cumsum(-2)
    faded, grown = torch.exp(decay), torch.exp(-decay)
    v = chunks(v)
    k, b, r = chunks(k) * grown, chunks(b) * grown, chunks(r) * faded
    a = chunks(a) * torch.exp(decay - log_w)
    a_b, a_k = (a @ b.mT).tril(-1), (a @ k.mT).tril(-1)
    r_b, r_k = (r @ b.mT).tril(), (r @ k.mT).tril()
    # u = u_state S + u_own, with S [key, value] before the chunk.
    u_state, u_own = torch.linalg.solve_triangular(
        torch.eye(CHUNK) - a_b, torch.cat((a, a_k @ v), -1), upper=False, unitriangular=True
    ).split(size, -1)
    y_state, y_own = r + r_b @ u_state, r_b @ u_own + r_k @ v
    added = b.mT @ u_own + k.mT @ v
    end = faded[..., -1, :, None]
    state = torch.zeros(batch, heads, size, size)
    out = []
    for i in range(steps // CHUNK):
        out.append(y_state[i] @ state + y_own[i])
        state = end[i] * (state + b[i].mT @ (u_state[i] @ state) + added[i])
    return torch.stack(out).permute(0, 3, 1, 2, 4).reshape(steps, batch, heads, size)


def by_head(x: Tensor) -> Tensor:
    """x [.., D] as [.., H, N]"""
    return x.reshape(*x.shape[:-1], -1, HEAD_SIZE)


class LowRank(nn.Module):
    """Two matrices in a row, [rank, D] and [D, rank], and a bias."""

    def __init__(self, size: int, bias: Tensor | None) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, size) * 0.1 / size**0.5)
        self.up = nn.Parameter(torch.randn(size, RANK) * 0.3 / RANK**0.5)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor], cast: Cast) -> Tensor:
        low = cast(between(cast(functional.linear(x, self.down))))
        return cast(functional.linear(low, self.up, self.bias))


class TimeMix(TimeBranch):
    def __init__(self, size: int, layer: int, layers: int) -> None:
        super().__init__()
        depth = layer / max(1, layers - 1)
        nearness = 1 - layer / layers
        ramp = torch.arange(size) / size
        place = torch.arange(size) / (size - 1)
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            self.register_parameter(f"x_{name}", nn.Parameter(1 - ramp ** (power * nearness)))
        self.receptance = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.key = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.value = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.output = nn.Parameter(torch.randn(size, size) * 0.3 / size**0.5)
        self.w_lora = LowRank(size, -6.5 + 5 * place ** (0.85 + depth**0.5))
        self.a_lora = LowRank(size, torch.zeros(size))
        self.g_lora = LowRank(size, None)
        # With the sigmoid in front of it this one is a gate of 0.5 times its row sums.
        nn.init.normal_(self.g_lora.up, std=2 / RANK**0.5)
        self.v_lora = LowRank(size, torch.full((size,), 0.5)) if layer > 0 else None
        self.k_k = nn.Parameter(torch.full((size,), 0.85))
        self.k_a = nn.Parameter(torch.ones(size))
        self.r_k = nn.Parameter(torch.zeros(size))
        self.ln_x = nn.GroupNorm(size // HEAD_SIZE, size, eps=GROUP_NORM_EPS)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / layers) ** 0.7)

    def mix(
        self, x: Tensor, last: Tensor, first: Tensor | None, recurrence: Recurrence, cast: Cast
    ) -> tuple[Tensor, Tensor]:
        """x and last [.., D] to the block's addend and the values of the first block."""
        r, w, k, v, a, g = (
            cast(torch.lerp(x, last, getattr(self, f"x_{name}"))) for name in "rwkvag"
        )
        log_w = -math.exp(-0.5) * torch.sigmoid(self.w_lora(w, torch.tanh, cast))
        a = cast(torch.sigmoid(self.a_lora(a, exact, cast)))
        g = self.g_lora(g, torch.sigmoid, cast)
        values = cast(functional.linear(v, self.value))
        if self.v_lora is None:
            first = values
        else:
            assert first is not None
            share = cast(torch.sigmoid(self.v_lora(v, exact, cast)))
            values = cast(torch.lerp(values, first, share))
        r = cast(functional.linear(r, self.receptance))
        k = cast(functional.linear(k, self.key))

        kk = functional.normalize(by_head(k * self.k_k), dim=-1)
        k = cast(k * (1 + (a - 1) * self.k_a))
        r, log_w, k, v, a = map(by_head, (r, log_w, k, values, a))
        y = recurrence(r, log_w, k, v, -kk, kk * a).flatten(-2)
        normed = self.ln_x(y.reshape(-1, y.shape[-1])).view_as(y)
        bonus = (r * k * by_head(self.r_k)).sum(-1, keepdim=True) * v
        out = cast(normed + bonus.flatten(-2))
        return cast(functional.linear(cast(out * g), self.output)), first

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, B, D] to the block's addend and the values of the first block; no penalty."""
        mixed, first = self.mix(x, shifted(x), first, chunked, exact)
        return mixed, first, x.new_zeros(())

    def step(
        self, x: Tensor, first: Tensor | None, state: Tensor, cast: Cast
    ) -> tuple[Tensor, Tensor]:
        """x [B, D], state rows att_x and S of [B, 2 + N, D], changed in place."""
        last = state[:, 0].clone()
        state[:, 0] = x
        # A row for each value channel, H x N key channels wide.
        rows = by_head(state[:, 1:-1]).transpose(1, 2)

        def one(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
            u = rows @ a[..., None]
            added = u * b[..., None, :] + v[..., None] * k[..., None, :]
            now = rows * torch.exp(log_w)[..., None, :] + added
            state[:, 1:-1] = now.transpose(1, 2).flatten(-2)
            y: Tensor = (now @ r[..., None])[..., 0]
            return y

        return self.mix(x, last, first, one, cast)


class ChannelMix(ChannelBranch):
    def __init__(self, size: int, layer: int, layers: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(1 - (torch.arange(size) / size) ** ((1 - layer / layers) ** 4))
        self.key = nn.Parameter(torch.randn(4 * size, size) / size**0.5)
        self.value = nn.Parameter(torch.randn(size, 4 * size) * 0.3 / (4 * size) ** 0.5)

    def mix(self, x: Tensor, last: Tensor, cast: Cast) -> Tensor:
        k = cast(functional.linear(cast(torch.lerp(x, last, self.x_k)), self.key))
        return cast(functional.linear(cast(torch.relu(k) ** 2), self.value))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, shifted(x), exact)

    def step(self, x: Tensor, state: Tensor, cast: Cast) -> Tensor:
        """x [B, D], the last state row of [B, 2 + N, D], changed in place."""
        last = state[:, -1].clone()
        state[:, -1] = x
        return self.mix(x, last, cast)


class Rwkv7(LanguageModel):
    def block(self, layer: int) -> Block:
        time_mix = TimeMix(self.size, layer, self.layers)
        return Block(self.size, time_mix, ChannelMix(self.size, layer, self.layers))

    def new_state(self, batch: int) -> Tensor:
        return torch.zeros(self.layers, batch, 2 + HEAD_SIZE, self.size)

    def stored(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As flash-linear-attention's folders on the hub have it."""
        shape = tuple(self.get_parameter(name).shape)
        if name == "head":
            return "lm_head.weight", shape
        for ours, theirs in PUBLISHED.items():
            name = name.replace(ours, theirs)
        if name.endswith(".r_k"):
            shape = (shape[0] // HEAD_SIZE, HEAD_SIZE)
        elif ".attn.x_" in name:
            shape = (1, 1, *shape)
        plain = len(shape) != 2 or name.endswith(".r_k")
        return f"model.{name}" + ("" if plain else ".weight"), shape


# Parts of parameters' names, and what flash-linear-attention calls them.
PUBLISHED = {
    "pre_ln": "layers.0.pre_norm",
    "ln_out": "norm",
    "blocks": "layers",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "ln_x": "g_norm",
    "attention": "attn",
    "attn.receptance": "attn.r_proj",
    "attn.key": "attn.k_proj",
    "attn.value": "attn.v_proj",
    "attn.output": "attn.o_proj",
    "feed_forward": "ffn",
    "lora.down": "lora.lora.0",
    "lora.up": "lora.lora.2",
    "lora.bias": "lora.lora.2.bias",
}
