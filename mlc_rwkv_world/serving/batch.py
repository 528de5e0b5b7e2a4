"""Many requests on one engine: each step decodes all that answer, then reads a piece of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.runtime.answer import choose_all
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.sampler import Logits, Sampling, Scores, score
from mlc_rwkv_world.runtime.state import State
from mlc_rwkv_world.serving.cache import Ids, StateCache, common
from mlc_rwkv_world.serving.pace import Clock, Pace
from mlc_rwkv_world.serving.requests import (
    Busy,
    Event,
    Failed,
    Finished,
    PromptScores,
    PromptState,
    Reason,
    Request,
    Sink,
    Token,
    Usage,
)
from mlc_rwkv_world.serving.sequence import INTERVAL, Sequence

DEFAULT_SLOTS = 32
DEFAULT_QUEUE = 256
# Waiting for another to read a common beginning is worth it from so many tokens on.
_WORTH_WAITING = 16


class Counts(NamedTuple):
    """Requests that answer, that are being read, and that wait for a slot."""

    answering: int
    reading: int
    waiting: int


@dataclass
class Result:
    """What `BatchEngine.generate` gives for a prompt."""

    text: str
    tokens: list[int]
    reason: Reason
    usage: Usage


class BatchEngine:
    """Answers many requests at once. All its methods are called by one thread, which owns `engine`.

    A request has a slot from when its reading begins until it ends; `slots` of them are there, and
    `queue` more requests may wait. What it is told goes to the sink that it was inserted with.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slots: int = DEFAULT_SLOTS,
        queue: int = DEFAULT_QUEUE,
        cache: StateCache | None = None,
    ) -> None:
        if slots < 1 or queue < 0:
            raise UsageError(f"{slots} slots and a queue of {queue}: give at least 1, and 0.")
        self.engine = engine
        self.slots = slots
        self.queue = queue
        self.cache = cache
        self._clock = Clock()
        self._pace = Pace(min(INTERVAL, engine.metadata.prefill_chunk_size))
        self._number = 0
        # In the order in which they came: without a slot, with an unread prompt, and the others.
        self._waiting: list[Sequence] = []
        self._reading: list[Sequence] = []
        self._answering: list[Sequence] = []
        self._prompt_scores: dict[Sequence, list[Scores]] = {}
        # Of answers that are over: what their states have read, and those.
        self._to_keep: list[tuple[Sequence, Ids, State]] = []

    @property
    def counts(self) -> Counts:
        """How many requests there are."""
        return Counts(len(self._answering), len(self._reading), len(self._waiting))

    @property
    def busy(self) -> bool:
        """Whether there is any request, or a state to be kept."""
        return any(self.counts) or bool(self._to_keep)

    def insert(self, request: Request, sink: Sink) -> Sequence:
        """Take a request; what is given stands for it in `remove`. Raises Busy."""
        if len(self._waiting) >= self.queue + max(0, self.slots - self._taken):
            raise Busy(f"{len(self._waiting)} requests wait already. Try again later.")
        self._keep_ended()
        keeps = self.cache is not None and request.cached and not request.score_prompt
        sequence = Sequence(request, sink, self._number, self._clock.now, keeps=keeps)
        self._number += 1
        self._elect(sequence)
        self._waiting.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """End a request wherever it stands; nothing where it has ended."""
        if not sequence.over:
            self._finish(sequence, "cancelled")

    def step(self) -> None:
        """One token for all that answer, and one piece of the prompts."""
        self._keep_ended()
        self._end_late_ones()
        if self._answering:
            started = time.perf_counter()
            answering = list(self._answering)
            self._decode(answering)
            self._pace.decoded(time.perf_counter() - started, len(answering))
        if self._waiting or self._reading:
            self._read()

    def generate(
        self,
        prompts: Many[str | bytes | npt.NDArray[np.int32]],
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Many[str] = (),
        max_tokens: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Result]:
        """What follows each of `prompts`, texts or ids, as `Engine.generate` gives it.

        `progress` hears how many of them are answered, and of how many. Raises the error of the
        first that fails.
        """
        results: dict[int, Result] = {}
        asked = 0
        while len(results) < len(prompts):
            while asked < len(prompts) and len(self._waiting) < self.slots:
                prompt = prompts[asked]
                request = Request(
                    self.engine.encode(prompt) if isinstance(prompt, str | bytes) else prompt,
                    sampling or self.engine.sampling,
                    seed=seed,
                    stop=StopRule(tuple(stop)),
                    max_tokens=max_tokens,
                )
                self.insert(request, _Collector(asked, results))
                asked += 1
            before = len(results)
            self.step()
            if len(results) > before:
                progress(len(results), len(prompts))
        self._keep_ended()
        return [results[index] for index in range(len(prompts))]

    @property
    def _taken(self) -> int:
        return len(self._answering) + len(self._reading)

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for group in (self._answering, self._reading, self._waiting):
            for sequence in list(group):
                deadline = sequence.request.deadline
                if deadline is not None and now > deadline:
                    self._finish(sequence, "timeout")

    def _decode(self, sequences: list[Sequence]) -> None:
        states = [one.current_state for one in sequences]
        logits = self.engine.decode_batch([one.next_token for one in sequences], states)
        for sequence in sequences:
            sequence.position += 1
            self._keep(sequence)
        self._go_on(sequences, np.atleast_2d(logits))

    def _read(self) -> None:
        """Read a piece of the prompts, and choose the first tokens of those that are through."""
        piece = self._piece()
        if not piece:
            return
        started = time.perf_counter()
        logits = self.engine.prefill_batch(
            [one.prompt[one.position : end] for one, end in piece],
            [one.current_state for one, _ in piece],
        )
        read = sum(end - one.position for one, end in piece)
        self._pace.read(read, time.perf_counter() - started)
        self._clock.read(read)
        through = []
        for row, (sequence, end) in enumerate(piece):
            sequence.position = end
            self._keep(sequence)
            if end == len(sequence.prompt) or sequence.request.score_prompt:
                through.append(row)
        if through:
            done = [piece[row][0] for row in through]
            for sequence in done:
                self._reading.remove(sequence)
                self._answering.append(sequence)
            self._go_on(done, logits[through])

    def _piece(self) -> list[tuple[Sequence, int]]:
        """What to read now: sequences with the ends of their pieces."""
        room = self._pace.tokens(others_decode=bool(self._answering))
        piece: list[tuple[Sequence, int]] = []
        for sequence in self._in_order():
            if room == 0 or len(piece) == self.engine.metadata.max_batch_size:
                break
            if sequence.state is None and not self._admit(sequence):
                continue
            # What is scored is read one by one, with those that answer.
            most = 1 if sequence.request.score_prompt else room
            end = min(sequence.next_cut, sequence.position + most)
            piece.append((sequence, end))
            room -= end - sequence.position
        return piece

    def _in_order(self) -> list[Sequence]:
        """The prompts that can be read now, those to be read first at the front."""
        ranks: dict[Sequence, float] = {}
        ready = []
        for sequence in sorted(
            (*self._reading, *self._waiting), key=lambda one: one.number, reverse=True
        ):
            rank = self._clock.rank(sequence.left, sequence.asked_at)
            # Who is waited for comes as early as those that wait, which come later in number.
            ranks[sequence] = min(rank, ranks.get(sequence, rank))
            if self._waits(sequence) and sequence.leader is not None:
                leader = sequence.leader[0]
                ranks[leader] = min(ranks[sequence], ranks.get(leader, ranks[sequence]))
            else:
                ready.append(sequence)
        return sorted(ready, key=lambda one: (ranks[one], one.number))

    def _waits(self, sequence: Sequence) -> bool:
        """Whether another one still reads what both begin with."""
        while sequence.leader is not None:
            leader, place = sequence.leader
            if not leader.over and leader.position < place:
                return True
            gone = leader.over and leader.position < place
            sequence.leader = None
            if gone:
                self._elect(sequence)
        return False

    def _elect(self, sequence: Sequence) -> None:
        """Let an earlier request read for a new one what both begin with, if that is much."""
        request = sequence.request
        if self.cache is None or not sequence.keeps:
            return
        # One token remains to be read, whose logits are wanted.
        best, most = None, self.cache.reach(request.ids, sequence.origin) + _WORTH_WAITING
        for other in (*self._reading, *self._waiting):
            if other.number < sequence.number and _shares(other, sequence):
                same = min(common(other.prompt, request.ids), len(request.ids) - 1)
                same = min(same, len(other.prompt) - 1)
                if same >= max(most, other.position + 1):
                    best, most = other, same + 1
        if best is not None:
            best.cut_at(most - 1)
            sequence.leader = (best, most - 1)

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting request a slot, and what is known of its prompt."""
        if self._taken >= self.slots:
            return False
        position, content = 0, None
        if self.cache is not None and sequence.keeps:
            request = sequence.request
            position, content = self.cache.find(request.ids, sequence.origin)
        sequence.admit(self.engine, position, content)
        self._waiting.remove(sequence)
        self._reading.append(sequence)
        return True

    def _keep(self, sequence: Sequence) -> None:
        """Put a checkpoint into the cache where one belongs."""
        if sequence.is_checkpoint():
            self._put(sequence, sequence.ids_read(), sequence.current_state)

    def _keep_ended(self) -> None:
        """Put what answers have ended with into the cache: after everybody was told of the end."""
        ended, self._to_keep = self._to_keep, []
        for one in ended:
            self._put(*one)

    def _put(self, sequence: Sequence, ids: Ids, state: State) -> None:
        if self.cache is not None and not self.cache.holds(ids, sequence.origin):
            self.cache.put(ids, state.numpy(), sequence.origin)

    def _go_on(self, sequences: list[Sequence], logits: Logits) -> None:
        """Take what follows by a row of `logits` each: a scored prompt's token, or a choice."""
        scoring = [i for i, one in enumerate(sequences) if one.request.score_prompt and one.left]
        if scoring:
            self._score([sequences[i] for i in scoring], logits[scoring])
        rows = [i for i, one in enumerate(sequences) if not one.left and not one.over]
        for i in rows:
            self._begin(sequences[i])
        rows = [i for i in rows if not sequences[i].over]
        if rows:
            chosen = logits if len(rows) == len(sequences) else logits[rows]
            self._choose([sequences[i] for i in rows], chosen)

    def _begin(self, sequence: Sequence) -> None:
        """Begin the answer of a prompt that was read just now."""
        if sequence.answer is not None:
            return
        if sequence.request.score_prompt:
            sequence.sink(PromptScores(tuple(self._prompt_scores.pop(sequence, ()))))
        if sequence.request.wants_state:
            state = sequence.current_state
            sequence.sink(PromptState(state.numpy(), state.tokens_read))
        if sequence.request.max_tokens == 0:
            sequence.note_first_token()
            self._finish(sequence, "length")
            return
        try:
            sequence.begin_answer(self.engine)
        except RwkvWorldError as error:
            self._fail(sequence, error)

    def _choose(self, sequences: list[Sequence], logits: Logits) -> None:
        answers = [one.answer for one in sequences if one.answer is not None]
        masks = [None if one.guide is None else one.guide.mask() for one in sequences]
        given = masks if any(mask is not None for mask in masks) else ()
        tokens = choose_all(answers, logits, given, self.engine.launcher)
        for sequence, token in zip(sequences, tokens, strict=True):
            if isinstance(token, RwkvWorldError):
                self._fail(sequence, token)
            else:
                self._take(sequence, token)

    def _take(self, sequence: Sequence, token: int) -> None:
        answer = sequence.answer
        assert answer is not None
        sequence.note_first_token()
        sequence.tokens.append(token)
        before = answer.tokens_taken
        text = answer.take(token)
        if text or answer.tokens_taken > before:
            sequence.sink(Token(token, text, answer.scores))
        if answer.finish_reason is not None:
            self._finish(sequence, answer.finish_reason)
        elif sequence.guide is not None:
            sequence.guide.take(token)

    def _score(self, sequences: list[Sequence], logits: Logits) -> None:
        following = [one.next_token for one in sequences]
        top = [one.request.top_scores or 0 for one in sequences]
        usable = min(self.engine.vocab_size, self.engine.tokenizer.token_count + 1)
        for row, sequence in enumerate(sequences):
            try:
                found = score(following[row : row + 1], logits[row : row + 1], [top[row]], usable)
            except RwkvWorldError as error:
                self._fail(sequence, error)
            else:
                self._prompt_scores.setdefault(sequence, []).extend(found)

    def _finish(self, sequence: Sequence, reason: Reason) -> None:
        if sequence.keeps and sequence.answer is not None:
            # Whoever goes on with this conversation goes on from here.
            self._to_keep.append((sequence, sequence.ids_read(), sequence.current_state))
        self._end(sequence)
        sequence.sink(Finished(reason, sequence.usage))

    def _fail(self, sequence: Sequence, error: RwkvWorldError) -> None:
        self._end(sequence)
        sequence.sink(Failed(error, sequence.usage))

    def _end(self, sequence: Sequence) -> None:
        for group in (self._answering, self._reading, self._waiting):
            if sequence in group:
                group.remove(sequence)
        self._prompt_scores.pop(sequence, None)
        sequence.end()


class _Collector:
    """The sink of one prompt of `generate`."""

    def __init__(self, index: int, results: dict[int, Result]) -> None:
        self._index = index
        self._results = results
        self._texts: list[str] = []
        self._tokens: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            self._texts.append(event.text)
            self._tokens.append(event.id)
        elif isinstance(event, Finished):
            text = "".join(self._texts)
            self._results[self._index] = Result(text, self._tokens, event.reason, event.usage)
        elif isinstance(event, Failed):
            raise event.error


def _shares(other: Sequence, sequence: Sequence) -> bool:
    """Whether what the one reads is of use to the other."""
    return other.keeps and other.origin == sequence.origin
