"""Choose the next token from the logits, as the World demos do.

Order: logit bias, penalties for tokens of this answer, temperature, top_k, top_p, min_p, one random
number. All of it is done in C++, without the interpreter's lock; see rwkv_world/sampler.h.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact import config as defaults
from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.errors import ArtifactError, RwkvWorldError, StateError, UsageError
from mlc_rwkv_world.runtime import _sampler

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint32]

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "penalty_decay": (0.0, 1.0),
    "min_p": (0.0, 1.0),
}
_BIAS = (-100.0, 100.0)
# The words of Python's own generator, from which older files went on.
_OLDER_WORDS = 625


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    A temperature or top_p of 0, or a top_k of 1, always takes the likeliest token.

    A token that stands in the answer already loses `presence_penalty` plus
    `frequency_penalty` times its weight: one for each time it occurred, times
    `penalty_decay` for each token since. `repetition_penalty` divides its logit where that
    is positive, multiplies it where negative.

    Chosen are only the `top_k` likeliest tokens (0 for all), of these the likeliest whose
    probabilities reach `top_p`, and of these such as are `min_p` times as likely as the first;
    what is as likely as the last one of them is kept too. `logit_bias` is added to the logits of
    ids. Raises UsageError for a value out of range.
    """

    temperature: float = defaults.TEMPERATURE
    top_p: float = defaults.TOP_P
    presence_penalty: float = defaults.PRESENCE_PENALTY
    frequency_penalty: float = defaults.FREQUENCY_PENALTY
    repetition_penalty: float = defaults.REPETITION_PENALTY
    penalty_decay: float = 0.996
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        if not _is_whole(self.top_k):
            raise UsageError(f"top_k is {self.top_k}; give a whole number, 0 for all tokens.")
        for token, bias in self.logit_bias.items():
            if not _is_whole(token):
                raise UsageError(f"logit_bias is given for {token!r}; give a token id.")
            _check_range(f"logit_bias of {token}", bias, *_BIAS)

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

    def changed(self, options: Mapping[str, Any]) -> Sampling:
        """This with the `options` that are not None."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})


class Sampler:
    """Chooses the tokens of one sequence. The same `seed` gives the same choices.

    A choice depends on the seed, the tokens taken and the logits alone: not on what is chosen
    beside it, nor when. Several threads may use one sampler.
    """

    def __init__(self, sampling: Sampling, seed: int | None, vocab_size: int) -> None:
        """Only ids below `vocab_size` are chosen. Without a `seed` each sampler differs."""
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 64):
            raise UsageError(f"The seed is {seed}; give a whole number from 0 to 2^64 - 1.")
        self.sampling = sampling
        self._core = _sampler.Sampler(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            penalty_decay=sampling.penalty_decay,
            logit_bias=list(sampling.logit_bias.items()),
            vocab_size=vocab_size,
            seed=int.from_bytes(os.urandom(8), "little") if seed is None else int(seed),
        )

    def choose(self, logits: Logits, mask: Mask | None = None) -> int:
        """The next token by its logits, float32 [V], which stay as they are.

        In `mask`, uint32, bit i % 32 of word i // 32 says whether id i is allowed. Nothing
        changes: asked again, it gives the same token, until one is taken. Raises ArtifactError
        where the logits hold NaN or infinity, UsageError where the mask leaves nothing.
        """
        token = self._core.choose(logits, mask)
        if token < 0:
            raise _error(token)
        return token

    def take(self, token: int) -> None:
        """Move on behind `token`, whether it was chosen here or elsewhere."""
        self._core.take(token)

    def sample(self, logits: Logits) -> int:
        """Choose a token, and take it."""
        token = self.choose(logits)
        self.take(token)
        return token

    def forget(self) -> None:
        """Begin a new answer: penalties start afresh, the random numbers go on."""
        self._core.forget()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The history, and the seed with the number of tokens taken, for a file."""
        ids, weights, seed, taken = self._core.memory()
        return {
            "penalty_ids": ids,
            "penalty_weights": weights,
            "random": np.array([seed, taken], np.uint64),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where the sampler stood that gave `arrays`; StateError where they are not such.

        An older file's random numbers do not go on; what follows is decided by them all the same.
        """
        ids, weights, numbers = (arrays.get(name) for name in self.arrays())
        try:
            if ids is None or weights is None or numbers is None:
                raise ValueError("a part is missing")
            for array, dtype in ((ids, "int32"), (weights, "float64")):
                if array.dtype != dtype or array.ndim != 1:
                    raise ValueError(f"{array.dtype} {array.shape} is in the place of {dtype}")
            seed, taken = _place(numbers)
            self._core.restore(ids.tolist(), weights.tolist(), seed, taken)
        except (ValueError, UsageError) as error:
            raise StateError(f"The file's sampling history is damaged: {error}.") from None


def choose_all(
    samplers: Sequence[Sampler],
    logits: Logits,
    masks: Sequence[Mask | None] = (),
    launcher: int = 0,
) -> list[int | RwkvWorldError]:
    """What `choose` gives each of `samplers` by its row of `logits`, float32 [B, V].

    Where it would raise an error, that stands in the token's place: the others go on. With an
    engine's `launcher` the rows are shared between its threads.
    """
    cores = [one._core for one in samplers]
    tokens = _sampler.choose_all(cores, logits, list(masks), launcher)
    return [token if token >= 0 else _error(token) for token in tokens]


@dataclass(frozen=True)
class Scores:
    """Logarithms of a model's own probabilities, in which no option of sampling has a part.

    `log_probability` is a token's; `top` holds the likeliest tokens, the first one first.
    """

    log_probability: float
    top: tuple[tuple[int, float], ...]


def score(
    tokens: Sequence[int], logits: Logits, top: Sequence[int], vocab_size: int
) -> list[Scores]:
    """The scores of each of `tokens` by its row of `logits`, float32 [B, V].

    Beside it stand the `top[b]` likeliest tokens with ids below `vocab_size`. Raises ArtifactError
    where the logits hold NaN or infinity.
    """
    found = _sampler.score(list(tokens), logits, list(top), vocab_size)
    if any(math.isnan(value) for value, _ in found):
        raise _error(_sampler.NOT_A_NUMBER)
    return [Scores(value, tuple(likely)) for value, likely in found]


def _error(fault: int) -> RwkvWorldError:
    if fault == _sampler.NOTHING_ALLOWED:
        return UsageError("The mask leaves no token. Allow one that the model can give.")
    return ArtifactError(
        "The model's output is not a number: a block's values leave the range that it "
        "computes in, or the checkpoint is damaged. `python -m mlc_rwkv_world inspect "
        "MODEL` finds where; a build with `--fp32-layers auto` cures it."
    )


def _place(numbers: npt.NDArray[Any]) -> tuple[int, int]:
    """Seed and number of tokens taken, as files hold them."""
    words = numbers.tolist()
    if numbers.dtype == np.uint64 and numbers.shape == (2,):
        return words[0], words[1]
    if numbers.dtype == np.uint32 and numbers.shape == (_OLDER_WORDS,) and words[-1] < _OLDER_WORDS:
        return words[0] | words[1] << 32, words[-1]
    raise ValueError(f"its random numbers are {numbers.dtype} {numbers.shape}")


def _check_range(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high):  # type: ignore[operator]
        raise UsageError(f"{name} is {value}; give a number from {low:g} to {high:g}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
