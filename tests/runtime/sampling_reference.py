"""The sampler by the book, in float64: every step over all tokens, and a full sort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.runtime import Sampling

Probabilities = npt.NDArray[np.float64]
# How far float32 and float64 may be apart in a sum of probabilities.
ROUNDING = 2e-5


def uniform(seed: int, taken: int) -> float:
    """The random number of the choice after `taken` tokens, from numpy's own generator."""
    # It moves its counter on before it draws.
    words = np.random.Philox(key=seed, counter=(taken - 1) % (1 << 256))
    return float(np.random.Generator(words).random())


@dataclass
class Reference:
    """Chooses as `Sampler` does, one sequence's tokens."""

    sampling: Sampling
    seed: int
    vocab_size: int
    weights: dict[int, float] = field(default_factory=dict)
    taken: int = 0

    def probabilities(
        self, logits: npt.NDArray[np.float32], mask: Any = None, slack: float = 0.0
    ) -> Probabilities:
        """Of each token [V]; `slack` moves what decides whether a token is kept."""
        sampling = self.sampling
        scores = logits[: self.vocab_size].astype(np.float64)
        for token, bias in sampling.logit_bias.items():
            scores[token] += bias
        for token, weight in self.weights.items():
            penalty = sampling.repetition_penalty
            scores[token] *= 1 / penalty if scores[token] > 0 else penalty
            scores[token] -= sampling.presence_penalty + sampling.frequency_penalty * weight
        if mask is not None:
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab_size]
            scores[bits == 0] = -np.inf
        weights = np.exp((scores - scores.max()) / sampling.temperature)
        falling = np.sort(weights)[::-1]
        bound = sampling.min_p
        if sampling.top_k:
            bound = max(bound, falling[: sampling.top_k][-1])
            falling = falling[falling >= falling[: sampling.top_k][-1]]
        if sampling.top_p < 1:
            mass = sampling.top_p * falling.sum() * (1 + slack)
            place = np.searchsorted(np.cumsum(falling), mass)
            bound = max(bound, falling[min(int(place), len(falling) - 1)])
        weights[weights < bound * (1 - slack)] = 0
        return np.asarray(weights / weights.sum())

    def chooses(self, token: int, logits: npt.NDArray[np.float32], mask: Any = None) -> bool:
        """Whether `token` is the choice, but for rounding."""
        drawn = uniform(self.seed, self.taken)
        for slack in (0.0, 1e-6, -1e-6):
            probabilities = self.probabilities(logits, mask, slack)
            before = float(probabilities[:token].sum())
            after = before + float(probabilities[token])
            if probabilities[token] > 0 and before - ROUNDING <= drawn <= after + ROUNDING:
                return True
        return False

    def take(self, token: int) -> None:
        """Move on behind `token`."""
        self.taken += 1
        self.weights = {key: w * self.sampling.penalty_decay for key, w in self.weights.items()}
        self.weights[token] = self.weights.get(token, 0.0) + 1
