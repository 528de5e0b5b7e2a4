"""A conversation: the state that carries it from turn to turn, and what an answer needs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import with_system, with_thinking
from mlc_rwkv_world.chat.settings import MAX_TOKENS
from mlc_rwkv_world.chat.template import choose, usual_sampling
from mlc_rwkv_world.chat.thoughts import Parting, Piece
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.answer import Answer, check_max_tokens
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.generate import Generation, Progress, Speed
from mlc_rwkv_world.runtime.sampler import Sampling
from mlc_rwkv_world.runtime.state import State

_TURNS = "turns"
# How many turns can be taken back. Each keeps a state, of megabytes.
_KEPT = 4


@dataclass
class Exchange:
    """A message, and what of its answer was given."""

    message: str
    answer: str = ""


class Chat:
    """A conversation with a model, one turn after another.

    After each answer the state is as if it had read the conversation up to and with the
    blank line after the answer, however the answer ended: by itself, by `max_tokens`, by
    closing the iterator, by an exception or Ctrl-C. What was not shown was not read. A thought
    is read as well, and ended where it was cut off.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        template: Template | str | None = None,
        think: str | None = None,
        system: str | None = None,
    ) -> None:
        """Sampling and template are the model's own where they are not given.

        Another template, which may be given by name, brings its own sampling. `think` is one of
        its modes of thinking, `system` a System text. Raises UsageError for a template that does
        not exist, and for a mode or a System text that it does not have.
        """
        check_max_tokens(max_tokens)
        self.engine = engine
        self.template = choose(engine, template, think, system)
        self._speed = Speed()
        self._turns = 0
        self._max_tokens = max_tokens
        self._sampler = engine.sampler(sampling or usual_sampling(engine, self.template), seed)
        self._state = engine.new_state()
        # What conversations begin with: a new state, or a tuned one.
        self._beginning = engine.new_state()
        self._turn: Generation | None = None
        self._thought = ""
        self._exchanges: list[Exchange] = []
        # The last exchanges, and the states that they began from.
        self._before: deque[tuple[Exchange, State]] = deque(maxlen=_KEPT)
        self._loaded = 0

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What was said since the conversation began or was loaded."""
        return tuple(self._exchanges)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return self._sampler.sampling

    @property
    def max_tokens(self) -> int | None:
        """How long an answer may be."""
        return self._max_tokens

    @property
    def turns(self) -> int:
        """How many messages the conversation holds, the one being answered included."""
        return self._turns + (self._turn is not None and self._turn.prompt_read)

    @property
    def begun(self) -> bool:
        """Whether the state has read anything: a message, or what stands before the first."""
        return self._state.tokens_read > 0

    @property
    def speed(self) -> Speed:
        """How much was read and answered since the conversation began or was loaded."""
        return self._speed + (self._turn.speed if self._turn is not None else Speed())

    @property
    def thought(self) -> str:
        """What the model has thought before the last answer; empty where it did not think."""
        return self._thought

    def think(self, mode: str) -> None:
        """Think so from the next message on; UsageError where the template has no such mode."""
        self.template = with_thinking(self.template, mode)

    def ask(
        self, message: str, progress: Progress = lambda done, total: None
    ) -> Generator[str, None, None]:
        """Put `message` to the model; the answer comes in pieces of whole characters.

        `progress` hears how many tokens of the message were read, and of how many. The space
        that begins an answer is left out, and so is a thought, see `thought`. Raises UsageError
        for a message with nothing in it, or one that is not text.
        """
        return _texts(self.events(message, progress))

    def set(self, name: str, value: float) -> None:
        """Set `max_tokens`, or a field of `Sampling`, from the next message on.

        Raises UsageError for a value out of its range. Random numbers go on.
        """
        if name == MAX_TOKENS:
            check_max_tokens(int(value))
            self._max_tokens = int(value)
            return
        self._finish()
        sampler = self.engine.sampler(self.sampling.changed({name: value}))
        sampler.restore(self._sampler.arrays())
        self._sampler = sampler

    def system(self, text: str) -> None:
        """Begin a new conversation, with this System text.

        Raises UsageError where the template has no place for one.
        """
        self.template = with_system(self.template, text)
        self.reset()

    def undo(self) -> str:
        """Take back the last message and its answer, as if neither had been; gives the message.

        Raises UsageError where there is none, or it was too long ago.
        """
        self._finish()
        if not self._before:
            raise UsageError(
                f"There is nothing to take back: only the last {_KEPT} messages of this "
                "conversation can be, and none from before it was loaded."
            )
        exchange, state = self._before[-1]
        self._state.assign(state)
        self._sampler.forget()
        self._thought = ""
        self._turns -= 1
        self._forget_unheard()
        return exchange.message

    def events(
        self, message: str, progress: Progress = lambda done, total: None
    ) -> Generator[Piece, None, None]:
        """As `ask`, with the pieces of the thought before those of the answer."""
        if not self.template.cleaned(message):
            raise UsageError("The message is empty. Say something.")
        return self._ask(message, self.engine.encode(self.template.prompt(message)), progress)

    def read(self, message: str, answer: str) -> None:
        """Read a message and an answer that were said elsewhere, as if they had been said here.

        Raises UsageError for a message with nothing in it, or one that is not text.
        """
        if not self.template.cleaned(message):
            raise UsageError("The message is empty. Say something.")
        self._finish()
        self._read_primer()
        text = self.template.prompt(message)
        thought = self.template.rule.thought
        if thought is not None:
            text += thought.rest(begun=False)
        before = self._state.copy()
        # An answer begins with the space that was left out when it was shown.
        ids = self.engine.encode(f"{text} {answer.strip()}{self.template.ending}")
        started = time.perf_counter()
        self.engine.prefill(ids, self._state)
        self._speed += Speed(len(ids), time.perf_counter() - started)
        self._sampler.forget()
        exchange = Exchange(message, answer.strip())
        self._exchanges.append(exchange)
        self._before.append((exchange, before))
        self._turns += 1

    def reset(self) -> None:
        """Begin a new conversation, from the tuned state if one was loaded.

        Random numbers go on; counts of speed start afresh.
        """
        self._turn = None
        self._thought = ""
        self._state.assign(self._beginning)
        self._sampler.forget()
        self._begin(0)

    def save(self, path: str | Path) -> None:
        """Write the conversation to `path`: all that the next answer depends on, to the bit.

        Raises UsageError where a file that is no state is there, StorageError where it cannot be
        written.
        """
        self._finish()
        file = self._state.to_file()
        file.extra.update(self._sampler.arrays())
        file.notes[_TURNS] = str(self.turns)
        file.write(expanded(path))

    def load(self, path: str | Path) -> None:
        """Go on with the conversation that `save` wrote with the same model.

        A file of `State.save` begins a conversation where that state stands; a tuned state
        (`.pth`) takes the place of the template's primer, in this conversation and after
        `reset`. Raises NotFoundError or StateError; the conversation is then unchanged.
        """
        file = self._state.read_file(expanded(path))
        turns = file.count(_TURNS)
        if file.extra:
            self._sampler.restore(file.extra)
        else:
            self._sampler.forget()
        self._turn = None
        self._thought = ""
        self._state.from_file(file)
        if self._state.tokens_read == 0:
            self._beginning.assign(self._state)
        self._begin(turns)

    def _begin(self, turns: int) -> None:
        self._turns = self._loaded = turns
        self._speed = Speed()
        self._exchanges.clear()
        self._before.clear()

    def _ask(
        self, message: str, ids: npt.NDArray[np.int32], progress: Progress
    ) -> Generator[Piece, None, None]:
        self._finish()
        self._read_primer()
        self._sampler.forget()
        self._thought = ""
        exchange = Exchange(message)
        self._exchanges.append(exchange)
        self._before.append((exchange, self._state.copy()))
        rule = self.template.rule
        answer = Answer(
            self.engine.tokenizer, self._sampler, stop=rule, max_tokens=self._max_tokens
        )
        turn = self._turn = Generation(self.engine, self._state, answer)
        parting = Parting(rule.thought)
        try:
            for text in turn.run(ids, progress):
                for piece in parting.part(text):
                    if piece.is_thought:
                        self._thought += piece.text
                    else:
                        exchange.answer += piece.text
                    yield piece
                    if self._turn is not turn:
                        # Reset, load or another question came between: this answer is over.
                        return
        finally:
            if self._turn is turn:
                self._finish()

    def _read_primer(self) -> None:
        # A tuned state stands for a primer, and not for a System text.
        wanted = self._state.is_new or (self._state.tokens_read == 0 and self.template.takes_system)
        if wanted and self.template.primer:
            ids = self.engine.encode(self.template.primer)
            started = time.perf_counter()
            self.engine.prefill(ids, self._state)
            self._speed += Speed(len(ids), time.perf_counter() - started)

    def _finish(self) -> None:
        """End the last answer in the state, unless that was done; an interruption may prevent it.

        Then the next question does it.
        """
        turn = self._turn
        if turn is not None:
            turn.settle(turn.answer.unwritten + self.template.ending)
            self._turns, self._speed, self._turn = self.turns, self.speed, None
        self._forget_unheard()

    def _forget_unheard(self) -> None:
        """Drop messages that the state has not read, wherever an interruption came."""
        del self._exchanges[self._turns - self._loaded :]
        last = self._exchanges[-1] if self._exchanges else None
        while self._before and self._before[-1][0] is not last:
            self._before.pop()


def _texts(pieces: Generator[Piece, None, None]) -> Generator[str, None, None]:
    """The answer's texts of `pieces`, which end with them."""
    with closing(pieces):
        for piece in pieces:
            if not piece.is_thought:
                yield piece.text
