"""What the storage formats do to weights, and what float16 does to values, emulated in float32."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from language_model import Cast, LanguageModel, exact
from torch import Tensor

GROUP_SIZE = 32
# Matrices of low rank keep at least these bits in every format.
LOW_RANK_BITS = 8


def rounded(weight: Tensor, bits: int) -> Tensor:
    """weight [N, K] rounded to signed `bits` integers with one float16 scale per 32 of K."""
    largest = 2 ** (bits - 1) - 1
    groups = weight.detach().reshape(weight.shape[0], -1, GROUP_SIZE)
    scale = (groups.abs().amax(-1, keepdim=True) / largest).half().float()
    # A group of zeros has scale zero and stays zero.
    units = torch.where(scale > 0, groups / scale.clamp_min(1e-30), groups)
    held: Tensor = units.round().clamp(-largest, largest) * scale
    return held.view_as(weight)


def held(name: str, parameter: Tensor, bits: int | None, low_rank: int | None) -> Tensor:
    """The parameter as a format of so many bits holds it, those of low rank in others."""
    bits = low_rank if "_lora." in name else bits
    return parameter if bits is None or parameter.ndim < 2 else rounded(parameter, bits)


def float16(x: Tensor) -> Tensor:
    return x.half().float()


@dataclass(frozen=True)
class Format:
    name: str
    bits: int | None
    cast: Cast
    low_rank: int | None = None

    def apply(self, model: LanguageModel) -> LanguageModel:
        """A copy of the model with every matrix as this format holds it."""
        model = copy.deepcopy(model).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.data = held(name, parameter.data, self.bits, self.low_rank)
        return model


FORMATS = (
    Format("q0f32", None, exact),
    Format("q0f16", None, float16),
    Format("q8f32_1", 8, exact, LOW_RANK_BITS),
    Format("q8f16_1", 8, float16, LOW_RANK_BITS),
    Format("q4f32_1", 4, exact, LOW_RANK_BITS),
    Format("q4f16_1", 4, float16, LOW_RANK_BITS),
)
# What other bits for the matrices of low rank would do to the smallest of them.
LOW_RANKS = tuple(Format(f"q4f16_1, low rank in {b or 16}", 4, float16, b) for b in (4, None))
