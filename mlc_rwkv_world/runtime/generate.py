"""One run of generation: read a prompt, choose tokens, give text, leave the state clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.runtime.answer import Answer, FinishReason
from mlc_rwkv_world.runtime.sampler import Logits
from mlc_rwkv_world.runtime.state import State
from mlc_rwkv_world.tokenizer import WorldTokenizer

# Hears how many ids were read, and of how many.
Progress = Callable[[int, int], None]


@dataclass
class Speed:
    """Tokens read and generated, and the seconds that they took."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def __add__(self, other: Speed) -> Speed:
        return Speed(
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_seconds + other.prefill_seconds,
            self.decode_tokens + other.decode_tokens,
            self.decode_seconds + other.decode_seconds,
        )

    def __str__(self) -> str:
        prefill = self.prefill_tokens / max(self.prefill_seconds, 1e-9)
        decode = self.decode_tokens / max(self.decode_seconds, 1e-9)
        return f"prefill: {prefill:.1f} tok/s, decode: {decode:.1f} tok/s"


class Event(NamedTuple):
    """One token of an answer: the text that it completes, which may be none, and its id.

    `log_probability` is the model's own for it and `top` holds the likeliest tokens with theirs,
    both where scores were asked for. `finish_reason` is set in the last event.
    """

    text: str
    token: int
    log_probability: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class _Mark(NamedTuple):
    """A place in the answer up to which all that the state has read was given as text.

    `read` counts the tokens that the state has read there, `offset` the answer's bytes;
    `tokens` were chosen since, and the state has read the first of them or none.
    """

    read: int
    offset: int
    tokens: list[int]


class Reader(Protocol):
    """An engine, as far as a generation needs one."""

    tokenizer: WorldTokenizer

    def prefill(
        self,
        ids: Sequence[int] | npt.NDArray[np.int32],
        state: State,
        progress: Progress = lambda done, total: None,
    ) -> Logits:
        """Read `ids` into the state; the logits [V] after the last of them."""

    def decode(self, token: int, state: State) -> Logits:
        """Read one token into the state; the logits [V] after it."""


class Generation:
    """Drives one answer, whose tokens an engine reads into a state that they continue.

    `run` may be left at any point: by its end, by closing it, by an exception or Ctrl-C.
    `settle` then makes the state that of a sequence which holds just the text that was given.
    """

    def __init__(self, engine: Reader, state: State, answer: Answer) -> None:
        self.speed = Speed()
        self.answer = answer
        self._engine = engine
        self._state = state
        self._mark: _Mark | None = None
        # The last state whose text was given in full, if the present one's was not.
        self._clean: State | None = None
        self._settled_at = -1

    def run(
        self, ids: npt.NDArray[np.int32], progress: Progress = lambda done, total: None
    ) -> Iterator[str]:
        """The texts of `events` that are not empty."""
        for event in self.events(ids, progress):
            if event.text:
                yield event.text

    def events(
        self, ids: npt.NDArray[np.int32], progress: Progress = lambda done, total: None
    ) -> Iterator[Event]:
        """Read the prompt `ids` and yield what each token gives until the answer ends.

        `progress` hears how many of the ids were read, and of how many.
        """
        engine, state, answer, speed = self._engine, self._state, self.answer, self.speed
        self._mark = _Mark(state.tokens_read + len(ids), 0, [])
        started = time.perf_counter()
        logits = engine.prefill(ids, state, progress)
        speed.prefill_tokens, speed.prefill_seconds = len(ids), time.perf_counter() - started
        started = time.perf_counter()
        while True:
            token = answer.choose(logits)
            speed.decode_seconds += time.perf_counter() - started
            self._mark.tokens.append(token)
            text = answer.take(token)
            scores = answer.scores
            if scores is None:
                yield Event(text, token, finish_reason=answer.finish_reason)
            else:
                yield Event(text, token, scores.log_probability, scores.top, answer.finish_reason)
            if answer.finish_reason is not None:
                return
            started = time.perf_counter()
            self._move_mark(token)
            logits = engine.decode(token, state)
            speed.decode_tokens += 1

    @property
    def prompt_read(self) -> bool:
        """Whether the state has read the prompt."""
        return self._mark is not None and self._state.tokens_read >= self._mark.read

    def settle(self, ending: str = "") -> None:
        """Leave the state as if it had read the prompt, the text that was given and `ending`.

        Nothing happens where the prompt was not read. Can be called again, also after an
        interruption of itself.
        """
        state, mark, tokenizer = self._state, self._mark, self._engine.tokenizer
        if mark is None or not self.prompt_read or state.tokens_read == self._settled_at:
            return
        wanted = _joined(self.answer.text.given(mark.offset), ending.encode())
        read = tokenizer.decode_bytes(mark.tokens[: state.tokens_read - mark.read])
        if not wanted.startswith(read):
            assert self._clean is not None
            state.assign(self._clean)
            read = tokenizer.decode_bytes(mark.tokens[: state.tokens_read - mark.read])
        rest = tokenizer.encode(wanted[len(read) :])
        self._settled_at = state.tokens_read + len(rest)
        if rest:
            self._engine.prefill(rest, state)

    def _move_mark(self, token: int) -> None:
        """Before the state reads `token`, the last one that was chosen."""
        text = self.answer.text
        if not text.holds_back:
            start = text.end - len(self._engine.tokenizer.id_to_bytes(token))
            # One assignment: an interruption finds the old mark or the new one.
            self._mark = _Mark(self._state.tokens_read, start, [token])
            self._clean = None
            text.forget(start)
        elif self._clean is None:
            self._clean = self._state.copy()


def _joined(text: bytes, ending: bytes) -> bytes:
    """`text` with `ending`, whose beginning it may hold already."""
    for length in range(len(ending), 0, -1):
        if text.endswith(ending[:length]):
            return text + ending[length:]
    return text + ending
