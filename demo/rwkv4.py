"""RWKV-4 in PyTorch, in the parallel form and stepwise."""

from __future__ import annotations

import math
from typing import Any

import torch
from language_model import Block, Cast, ChannelBranch, LanguageModel, TimeBranch, exact, shifted
from torch import Tensor, nn
from torch.nn import functional


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


class TimeMix(TimeBranch):
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

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """x [T, B, D] to the block's addend, and the mean square of what keys exceed 8 by."""
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
        excess = functional.relu(k.abs() - 8).square().mean()
        return functional.linear(torch.sigmoid(r) * wkv, self.output), first, excess

    def step(
        self, x: Tensor, first: Tensor | None, state: Tensor, cast: Cast
    ) -> tuple[Tensor, Tensor | None]:
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
        return cast(functional.linear(cast(cast(torch.sigmoid(r)) * wkv), self.output)), first


class ChannelMix(ChannelBranch):
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


class Rwkv4(LanguageModel):
    def block(self, layer: int) -> Block:
        time_mix = TimeMix(self.size, layer, self.layers)
        return Block(self.size, time_mix, ChannelMix(self.size, layer, self.layers))

    def new_state(self, batch: int) -> Tensor:
        state = torch.zeros(self.layers, batch, 5, self.size)
        state[:, :, 3] = -1e30
        return state

    def stored(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As the World folders of RWKV-4 on the hub have it."""
        shape = tuple(self.get_parameter(name).shape)
        if name == "head":
            return "head.weight", shape
        if ".time_mix_" in name:
            return f"rwkv.{name}", (1, 1, *shape)
        name = name.replace("pre_ln", "blocks.0.pre_ln")
        return f"rwkv.{name}" + (".weight" if len(shape) == 2 else ""), shape
