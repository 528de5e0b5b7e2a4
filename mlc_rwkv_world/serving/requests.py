"""What a batching engine is asked, and what it tells while it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.stopping import AT_THE_END, StopRule
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.runtime.sampler import Mask, Sampling, Scores

# As an answer ends by itself; or it was removed, or its time was over.
Reason = Literal["stop", "length", "cancelled", "timeout"]


class Busy(RwkvWorldError):
    """As many requests wait as may."""


class Guide(Protocol):
    """Says what an answer may go on with, a grammar for one. It belongs to one answer."""

    def mask(self) -> Mask | None:
        """Which ids may come next, as `Sampler.choose` takes it; None for all."""

    def take(self, token: int) -> None:
        """Move on behind a token that `mask` allowed."""


@dataclass(frozen=True)
class Origin:
    """What a prompt begins from instead of a new state: a state's content, float32 [L, R, D].

    `name` tells one from another for a cache, for as long as a process lives; `tokens` were read.
    """

    name: str
    content: npt.NDArray[np.float32]
    tokens: int


@dataclass(frozen=True)
class Request:
    """One answer: read the prompt `ids`, int32 [T], at least one, and go on by `sampling`.

    `max_tokens` of 0 reads only. `marks` are places in `ids`, ends of messages, at which other
    prompts may part from this one. With `top_scores`, each token comes with its log-probability
    and those of so many others; `score_prompt` says so for the prompt's tokens too, which are
    then read one by one. `guide` makes the guide of the answer. `deadline` is a time of
    `time.monotonic`. With `cached` unset no cache is looked into, and none keeps anything. With
    `wants_state` the state after the prompt is told.
    """

    ids: npt.NDArray[np.int32]
    sampling: Sampling
    seed: int | None = None
    stop: StopRule = AT_THE_END
    max_tokens: int | None = None
    marks: tuple[int, ...] = ()
    top_scores: int | None = None
    score_prompt: bool = False
    guide: Callable[[], Guide] | None = None
    origin: Origin | None = None
    cached: bool = True
    deadline: float | None = None
    wants_state: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise UsageError("The prompt is empty. Give at least one token.")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UsageError(f"max_tokens is {self.max_tokens}; give 0 or more.")


@dataclass
class Usage:
    """What an answer has cost: tokens, and seconds of waiting, reading and answering.

    Of the prompt, `cached_tokens` were read by an earlier request.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    waited: float = 0.0
    reading: float = 0.0
    answering: float = 0.0


@dataclass(frozen=True)
class PromptScores:
    """Scores of a prompt's tokens but the first, which nothing comes before."""

    scores: tuple[Scores, ...]


@dataclass(frozen=True)
class PromptState:
    """The state that has read the prompt: its content, float32 [L, R, D], and how many tokens."""

    content: npt.NDArray[np.float32]
    tokens: int


@dataclass(frozen=True)
class Token:
    """A token of the answer, and the text that it completes, which may be none."""

    id: int
    text: str
    scores: Scores | None = None


@dataclass(frozen=True)
class Finished:
    """The answer is over, the last that is told of it."""

    reason: Reason
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """The answer broke off, the last that is told of it."""

    error: RwkvWorldError
    usage: Usage = field(default_factory=lambda: Usage(0))


Event: TypeAlias = PromptScores | PromptState | Token | Finished | Failed
# Hears of a request, on the thread that owns the engine; it must return at once.
Sink = Callable[[Event], None]
