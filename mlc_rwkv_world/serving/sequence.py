"""One request on its way: where its reading stands, and the answer that grows."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.runtime.answer import Answer
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.state import State
from mlc_rwkv_world.serving.requests import Guide, Reason, Request, Sink, Usage

# A checkpoint stands wherever so many tokens were read, of a prompt or of an answer.
INTERVAL = 256
# Ends of messages have one where at least so many tokens lie between: reading stops there.
_BETWEEN = 128


class Sequence:
    """A request, its state once it has one, and its answer once its prompt was read."""

    def __init__(
        self, request: Request, sink: Sink, number: int, asked_at: int, *, keeps: bool
    ) -> None:
        """With `keeps`, a cache may know its beginning, and takes checkpoints of it."""
        self.request = request
        self.keeps = keeps
        self.sink = sink
        self.number = number
        self.asked_at = asked_at
        self.state: State | None = None
        # How many ids the state has read: of the prompt, then of `tokens`.
        self.position = 0
        # What was chosen; the state has read all but the last one.
        self.tokens: list[int] = []
        self.answer: Answer | None = None
        self.guide: Guide | None = None
        # Waits until that one has read so much, and then goes on from there.
        self.leader: tuple[Sequence, int] | None = None
        self.over = False
        self.usage = Usage(len(request.ids))
        self._cuts = _cuts(request) if keeps else [len(request.ids)]
        self._asked = time.perf_counter()
        self._admitted = self._answered = 0.0

    @property
    def prompt(self) -> npt.NDArray[np.int32]:
        """The ids to read."""
        return self.request.ids

    @property
    def origin(self) -> str:
        """The name of what the prompt begins from."""
        return "" if self.request.origin is None else self.request.origin.name

    @property
    def current_state(self) -> State:
        """Its state; it has one between `admit` and `end`."""
        assert self.state is not None
        return self.state

    @property
    def left(self) -> int:
        """How much of the prompt is unread."""
        return max(0, len(self.prompt) - self.position)

    @property
    def next_cut(self) -> int:
        """Where reading the prompt stops next at the latest."""
        return self._cuts[bisect.bisect_right(self._cuts, self.position)]

    @property
    def next_token(self) -> int:
        """What the state reads next."""
        if self.position < len(self.prompt):
            return int(self.prompt[self.position])
        return self.tokens[-1]

    def cut_at(self, place: int) -> None:
        """Let reading stop at `place` too."""
        if place not in self._cuts:
            bisect.insort(self._cuts, place)

    def is_checkpoint(self) -> bool:
        """Whether what was read now is worth keeping."""
        if not self.keeps:
            return False
        if self.position < len(self.prompt):
            return self.position in self._cuts
        return self.position > len(self.prompt) and self.position % INTERVAL == 0

    def ids_read(self) -> npt.NDArray[np.int32]:
        """All that the state has read, int32."""
        if self.position <= len(self.prompt):
            return self.prompt[: self.position]
        count = self.position - len(self.prompt)
        return np.concatenate([self.prompt, np.array(self.tokens[:count], np.int32)])

    def admit(self, engine: Engine, position: int, content: npt.NDArray[np.float32] | None) -> None:
        """Give it a state, of which `position` ids were read before."""
        origin = self.request.origin
        before = 0 if origin is None else origin.tokens
        self.state = engine.new_state()
        if content is None and origin is not None:
            content = origin.content
        if content is not None:
            self.state.commit(engine.slot_of(content), before + position)
        self.position = self.usage.cached_tokens = position
        self._admitted = time.perf_counter()
        self.usage.waited = self._admitted - self._asked

    def begin_answer(self, engine: Engine) -> None:
        """The prompt was read."""
        request = self.request
        rule: StopRule = request.stop
        self.answer = Answer(
            engine.tokenizer,
            engine.sampler(request.sampling, request.seed),
            stop=rule,
            max_tokens=request.max_tokens,
            top_scores=request.top_scores,
        )
        self.guide = None if request.guide is None else request.guide()

    def note_first_token(self) -> None:
        """The first token was chosen, or nothing is to be."""
        if not self._answered:
            self._answered = time.perf_counter()
            self.usage.reading = self._answered - (self._admitted or self._answered)

    def end(self, reason: Reason | None = None) -> None:
        """Nothing more is done for it; its slot is free."""
        now = time.perf_counter()
        if not self._admitted:
            self.usage.waited = now - self._asked
        if self._answered:
            self.usage.answering = now - self._answered
        elif self._admitted:
            self.usage.reading = now - self._admitted
        self.usage.completion_tokens = 0 if self.answer is None else self.answer.tokens_taken
        self.over = True
        self.state = None


def _cuts(request: Request) -> list[int]:
    """The places in a prompt where reading stops, its end the last of them."""
    length = len(request.ids)
    places = {*range(INTERVAL, length, INTERVAL), length - 1}
    places.update(_apart(request.marks))
    return [*sorted(place for place in places if 0 < place < length), length]


def _apart(marks: Iterable[int]) -> list[int]:
    """The first of `marks`, which most prompts share, and those that are not too near another."""
    kept: list[int] = []
    for mark in sorted(marks):
        if not kept or mark - kept[-1] >= _BETWEEN:
            kept.append(mark)
    return kept
