"""What every endpoint uses: the engine behind its worker, the model's name, template and limits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.engine import Engine
from mlc_rwkv_world.runtime.sampler import Sampling
from mlc_rwkv_world.serving.batch import BatchEngine
from mlc_rwkv_world.serving.http.bodies import Sampled
from mlc_rwkv_world.serving.http.faults import Fault
from mlc_rwkv_world.serving.http.metrics import Metrics
from mlc_rwkv_world.serving.http.states import States
from mlc_rwkv_world.serving.limits import Limits
from mlc_rwkv_world.serving.requests import Event, Failed, Finished, Origin, Request
from mlc_rwkv_world.serving.worker import Ticket, Worker

T = TypeVar("T")
# Texts above this many characters are encoded beside the loop.
_LONG = 1 << 15
# Seconds in which the engine's thread answers unless it hangs.
_PATIENCE = 60.0


@dataclass
class Service:
    """A model that is served."""

    engine: Engine
    batch: BatchEngine
    name: str
    template: Template
    sampling: Sampling
    limits: Limits = field(default_factory=Limits)
    takes_tuned_states: bool = False
    # Called on the engine's thread when that has broken down.
    died: Callable[[BaseException], None] = lambda error: None

    def __post_init__(self) -> None:
        self.created = int(time.time())
        self.metrics = Metrics(self.name)
        self.states = States(self.limits.states, self.limits.state_bytes)
        self.worker = Worker(self.batch, self._deliver, lambda error: self.died(error))
        self.metrics.watch(self.batch, self.worker)
        self.draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: dict[Ticket, Callable[[Event], None]] = {}

    def start(self) -> None:
        """Begin to answer, for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()

    def submit(
        self, requests: Sequence[Request], listen: Callable[[int, Event], None]
    ) -> list[Ticket]:
        """Hand requests in; `listen` hears events with a request's index, in the event loop."""
        tickets = self.worker.submit(*requests)
        for index, ticket in enumerate(tickets):
            self._listeners[ticket] = partial(listen, index)
        self.metrics.asked(requests)
        return tickets

    async def on_engine(self, function: Callable[[], T]) -> T:
        """What `function` gives, run on the engine's thread; a Fault where that does not answer."""
        future = asyncio.wrap_future(self.worker.call(function))
        try:
            return await asyncio.wait_for(future, _PATIENCE)
        except asyncio.TimeoutError:
            raise Fault(503, "The engine does not answer.", code="stuck") from None

    def check_model(self, model: str | None) -> None:
        """Raise a Fault for another model than the one that is served."""
        if model is not None and model != self.name:
            raise Fault(
                404,
                f"The model {model[:80]!r} is not served. There is {self.name!r}.",
                param="model",
                code="model_not_found",
            )

    async def encode(self, text: str) -> npt.NDArray[np.int32]:
        """The ids of a text."""
        if len(text) > _LONG:
            return await asyncio.to_thread(self.engine.encode, text)
        return self.engine.encode(text)

    def check_prompt(self, tokens: int) -> None:
        """Raise a Fault for a prompt that is too long."""
        most = self.limits.prompt_tokens
        if tokens > most:
            raise Fault(
                400,
                f"The prompt has {tokens} tokens, and this server reads {most} at most.",
                param="prompt",
                code="context_length_exceeded",
            )

    def sampling_of(self, body: Sampled) -> Sampling:
        """How the tokens of an answer are chosen."""
        bias = None
        if body.logit_bias:
            bias = {_token_id(key): value for key, value in body.logit_bias.items()}
            most = self.engine.vocab_size
            for token in bias:
                if token >= most:
                    raise Fault(400, f"logit_bias: there is no token {token}.", param="logit_bias")
        names = (
            *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
            *("repetition_penalty", "penalty_decay"),
        )
        asked: dict[str, Any] = {name: getattr(body, name) for name in names}
        if asked["top_k"] == -1:
            # As other servers say "all".
            asked["top_k"] = 0
        return self.sampling.changed({**asked, "logit_bias": bias})

    def seeds(self, body: Sampled, count: int) -> list[int | None]:
        """A seed for each of `count` answers."""
        if body.seed is None:
            return [None] * count
        return [(body.seed + index) % (1 << 64) for index in range(count)]

    def stops(self, body: Sampled) -> tuple[str, ...]:
        """The strings that a request wants an answer to end at."""
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        most = self.limits.stop_strings
        if len(stop) > most:
            raise Fault(400, f"{len(stop)} stop strings; give {most} at most.", param="stop")
        return tuple(stop)

    def count_of_choices(self, body: Sampled) -> int:
        """How many answers are wanted."""
        count = body.n or 1
        if count > self.limits.choices:
            raise Fault(400, f"n is {count}; give {self.limits.choices} at most.", param="n")
        return count

    def max_tokens(self, asked: int | None, usual: int, param: str = "max_tokens") -> int:
        """The length of an answer at most."""
        if asked is None:
            return min(usual, self.limits.answer_tokens)
        if asked < 0:
            raise Fault(400, f"{param} is {asked}; give 0 or more.", param=param)
        return min(asked, self.limits.answer_tokens)

    def check_top_scores(self, count: int | None, param: str) -> None:
        """Raise a Fault for more log-probabilities than are given."""
        if count is not None and count > self.limits.top_scores:
            most = self.limits.top_scores
            raise Fault(400, f"{param} is {count}; give {most} at most.", param=param)

    def deadline(self) -> float:
        """When a request that comes now has to be through."""
        return time.monotonic() + self.limits.request_seconds

    def origin(self, name: str | None) -> Origin | None:
        """What a prompt begins from; a Fault where there is no such state."""
        return None if name is None else self.states.origin(name)

    def _deliver(self, events: list[tuple[Ticket, Event]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:
            # The loop has ended, and with it everybody who listened.
            return

    def _dispatch(self, events: list[tuple[Ticket, Event]]) -> None:
        for ticket, event in events:
            self.metrics.told(ticket, event)
            listener = self._listeners.get(ticket)
            if isinstance(event, Finished | Failed):
                self._listeners.pop(ticket, None)
            if listener is not None:
                listener(event)


def new_name(kind: str) -> str:
    """A name for an object of the interface, as `chatcmpl-...`."""
    return f"{kind}-{uuid.uuid4().hex[:24]}"


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"logit_bias is given for {text[:40]!r}; give token ids.")
    return int(text)
