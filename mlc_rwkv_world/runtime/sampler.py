"""Choose the next token from the logits, as the World demos do.

Order: penalties for tokens of this answer, temperature, top_p, one random number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.errors import ArtifactError, StateError, UsageError

# Below this a temperature cannot be told from zero.
COLDEST = 1e-6
# A token whose weight has decayed below this is no longer penalized, so that the history
# stays short however long an answer becomes.
FORGOTTEN = 1e-3

# Running sums are taken over blocks, then inside one: numpy's cumsum of all takes a millisecond.
_BLOCK = 256
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "penalty_decay": (0.0, 1.0),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. A temperature or top_p of 0 always takes the likeliest token.

    A token that stands in the answer already loses `presence_penalty` plus
    `frequency_penalty` times its weight: one for each time it occurred, times
    `penalty_decay` for each token since. `repetition_penalty` divides its logit where that
    is positive, multiplies it where negative. Raises UsageError for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 0.3
    presence_penalty: float = 0.4
    frequency_penalty: float = 0.4
    repetition_penalty: float = 1.0
    penalty_decay: float = 0.996

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and low <= value <= high):
                raise UsageError(f"{name} is {value}; give a number from {low:g} to {high:g}.")

    @classmethod
    def from_config(cls, config: ChatConfig) -> Sampling:
        """The defaults of a model; ArtifactError where its configuration holds bad ones."""
        try:
            return cls(
                temperature=config.temperature,
                top_p=config.top_p,
                presence_penalty=config.presence_penalty,
                frequency_penalty=config.frequency_penalty,
                repetition_penalty=config.repetition_penalty,
            )
        except UsageError as error:
            raise ArtifactError(f"{config.path}: {error}") from None

    def changed(self, options: Mapping[str, float | None]) -> Sampling:
        """This with the `options` that are not None."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})


class Sampler:
    """Chooses the tokens of one sequence. The same `seed` gives the same choices."""

    def __init__(self, sampling: Sampling, seed: int | None, vocab_size: int) -> None:
        """Only ids below `vocab_size` are chosen. Without a `seed` each sampler differs."""
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 64):
            raise UsageError(f"The seed is {seed}; give a whole number from 0 to 2^64 - 1.")
        self.sampling = sampling
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        # Memory for the weights: to allocate it for each token costs as much as to fill it.
        self._scratch = np.empty(vocab_size, np.float32)
        self.forget()

    def forget(self) -> None:
        """Begin a new answer: penalties start afresh, the random numbers go on."""
        self._ids = np.empty(0, np.int32)
        self._weights = np.empty(0, np.float64)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token by its logits, float32 [V], which stay as they are.

        Raises ArtifactError where they hold NaN or infinity.
        """
        scores = self._penalized(logits[: self._vocab_size])
        best = int(scores.argmax())
        # argmax gives the place of a NaN if there is one.
        if not math.isfinite(scores[best]):
            raise ArtifactError(
                "The model's output is not a number: a block's values leave the range that it "
                "computes in, or the checkpoint is damaged. `python -m mlc_rwkv_world inspect "
                "MODEL` finds where; a build with `--fp32-layers auto` cures it."
            )
        sampling = self.sampling
        if sampling.temperature < COLDEST or sampling.top_p == 0:
            token = best
        else:
            weights = np.subtract(scores, scores[best], out=self._scratch)
            weights *= np.float32(1 / sampling.temperature)
            token = self._draw(np.exp(weights, out=weights))
        self._remember(token)
        return token

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The history and the random generator, for a file."""
        _, words, _ = self._random.getstate()
        return {
            "penalty_ids": self._ids,
            "penalty_weights": self._weights,
            "random": np.array(words, np.uint32),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where the sampler stood that gave `arrays`; StateError where they are not such."""
        ids, weights, words = (arrays.get(name) for name in self.arrays())
        try:
            if ids is None or weights is None or words is None or ids.shape != weights.shape:
                raise ValueError("a part is missing")
            generator = random.Random()
            generator.setstate((3, tuple(map(int, words)), None))
            ids, weights = ids.astype(np.int32), weights.astype(np.float64)
            if ids.ndim != 1 or not np.all((ids >= 0) & (ids < self._vocab_size)):
                raise ValueError("the history holds unknown tokens")
            if not np.isfinite(weights).all():
                raise ValueError("the history holds values that are not finite")
        except (TypeError, ValueError, OverflowError) as error:
            raise StateError(f"The file's sampling history is damaged: {error}.") from None
        self._ids, self._weights, self._random = ids, weights, generator

    def _penalized(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sampling, ids = self.sampling, self._ids
        if ids.size == 0:
            return logits
        scores = self._scratch
        scores[:] = logits
        seen = scores[ids]
        if sampling.repetition_penalty != 1:
            penalty = np.float32(sampling.repetition_penalty)
            seen = np.where(seen > 0, seen / penalty, seen * penalty)
        loss = sampling.presence_penalty + sampling.frequency_penalty * self._weights
        scores[ids] = seen - loss.astype(np.float32)
        return scores

    def _remember(self, token: int) -> None:
        self._weights *= self.sampling.penalty_decay
        place = np.flatnonzero(self._ids == token)
        if place.size:
            self._weights[place] += 1
        else:
            kept = self._weights >= FORGOTTEN
            self._ids = np.append(self._ids[kept], np.int32(token))
            self._weights = np.append(self._weights[kept], 1.0)

    def _draw(self, weights: npt.NDArray[np.float32]) -> int:
        """A token by its weight, the largest of which is 1, among the likeliest `top_p`.

        The weights [V] are overwritten.
        """
        if self.sampling.top_p < 1:
            mass = self.sampling.top_p * float(weights.sum(dtype=np.float64))
            weights *= weights >= _bound(weights, mass)
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
        sums = np.cumsum(blocks)
        target = self._random.random() * sums[-1]
        block = int(np.searchsorted(sums[:-1], target, side="right"))
        start = block * _BLOCK
        inner = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
        target -= sums[block] - blocks[block]
        # Rounding may put the target past the last weight; a weight of zero is never taken.
        last = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
        return start + min(int(np.searchsorted(inner, target, side="right")), last)


def _bound(weights: npt.NDArray[np.float32], mass: float) -> np.float32:
    """The largest weight such that it and all above it sum to at least `mass`.

    Halves are set apart by partition, since a full sort would take longer than a small model.
    """
    # Nearly always few tokens hold the mass.
    likely = weights[weights >= np.float32(1 / 512)]
    values = likely if likely.sum(dtype=np.float64) >= mass else weights
    while len(values) > _BLOCK:
        middle = len(values) // 2
        values = np.partition(values, middle)
        upper = float(values[middle:].sum(dtype=np.float64))
        if upper >= mass:
            values = values[middle:]
        else:
            mass -= upper
            values = values[:middle]
    falling = np.sort(values)[::-1]
    place = int(np.searchsorted(np.cumsum(falling, dtype=np.float64), mass))
    bound: np.float32 = falling[min(place, len(falling) - 1)]
    return bound
