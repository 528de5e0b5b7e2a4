"""The host's engine with a recurrent model: settings that it takes wrongly by default, and text.

Everything here is for `rwkv_world` alone. `docs/plugin.md` lists the symptoms.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, MODEL_TYPE
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.stock.defects import present
from mlc_rwkv_world.stock.host import host_version
from mlc_rwkv_world.stock.limits import ENGINE_PREFILL_TOKENS

# For each defect the setting that avoids it: a state cannot be cut back to a prefix, a step cannot
# be turned into a prefill, each entry of the history is a whole state, and no prompt of a recurrent
# model is cut into chunks.
ENGINE_SETTINGS: dict[str, tuple[str, Any]] = {
    "prefix_cache": ("prefix_cache_mode", "disable"),
    "prefill_mode": ("prefill_mode", "chunked"),
    "history": ("max_history_size", 1),
    "no_chunks": ("prefill_chunk_size", ENGINE_PREFILL_TOKENS),
}
_FINGERPRINT = ("User: hi\n\nAssistant:", [24281, 59, 4571, 261, 5585, 41693, 59])
_LAST_TOKEN = 65529


def add_engine_defaults(config: ModuleType) -> None:
    """Corrects the settings in the one place through which they reach the engine."""
    engine_config = config.EngineConfig
    version = host_version()
    settings = dict(setting for name, setting in ENGINE_SETTINGS.items() if present(name, version))
    missing = set(settings) - {field.name for field in dataclasses.fields(engine_config)}
    if missing:
        raise TypeError(f"EngineConfig has no field {', '.join(sorted(missing))}")
    original = engine_config.asjson
    if hasattr(original, "rwkv_world"):
        return

    @functools.wraps(original)
    def asjson(self: Any) -> str:
        if is_world_artifact(self.model):
            self = dataclasses.replace(self, **settings)
        return str(original(self))

    asjson.rwkv_world = True  # type: ignore[attr-defined]
    engine_config.asjson = asjson


def is_world_artifact(folder: Any) -> bool:
    """Whether the folder holds the configuration of one of our models."""
    try:
        content = json.loads((Path(folder) / CHAT_CONFIG).read_text(encoding="utf-8"))
        return bool(content["model_type"] == MODEL_TYPE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def add_text_streamer(tokenizers: ModuleType) -> None:
    """Streams of World tokens are turned into text by our tokenizer."""
    original: Any = tokenizers.TextStreamer
    if not issubclass(original, _Choosing):
        choosing = type("TextStreamer", (_Choosing,), {"original": original})
        setattr(tokenizers, original.__name__, choosing)


class _Choosing:
    """Makes the host's streamer, or ours where the tokenizer is World's."""

    original: Any

    def __new__(cls, tokenizer: Any) -> Any:
        text, ids = _FINGERPRINT
        if list(tokenizer.encode(text)) == ids:
            return WorldStreamer()
        return cls.original(tokenizer)


class WorldStreamer:
    """The host's TextStreamer for bytes that need not end where a character does.

    The host's expects of a tokenizer that an unfinished character comes out as U+FFFD, and holds
    it back then; its World tokenizer gives bytes.
    """

    def __init__(self) -> None:
        from mlc_rwkv_world.tokenizer import WorldTokenizer

        self._stream = WorldTokenizer.default().stream()

    def put(self, delta_tokens: Sequence[int]) -> str:
        """The text that these tokens complete. Ids without a token stand for nothing."""
        return "".join(self._stream.push(i) for i in delta_tokens if 0 < i <= _LAST_TOKEN)

    def finish(self) -> str:
        """What is left: an unfinished character as U+FFFD."""
        return str(self._stream.finish())


def add_chat_engine(chat: ModuleType) -> None:
    """`mlc_llm chat` runs World models with the engine whose text comes from Python.

    Its own engine turns tokens into text in C++, where an unfinished character ends the stream.
    """
    original: Any = chat.JSONFFIEngine
    if hasattr(original, "rwkv_world"):
        return

    @functools.wraps(original, updated=())
    def engine(model: str, *args: Any, **kwargs: Any) -> Any:
        chosen: Any = chat.MLCEngine if is_world_artifact(model) else original
        return chosen(model, *args, **kwargs)

    engine.rwkv_world = True  # type: ignore[attr-defined]
    setattr(chat, original.__name__, engine)


def add_admission(engine: ModuleType) -> None:
    """Gives the engine no more than it holds: it admits every request of a recurrent model."""
    asynchronous: Any = engine.AsyncMLCEngine
    synchronous: Any = engine.MLCEngine
    ask_async, ask = asynchronous._generate, synchronous._generate
    if hasattr(ask_async, "rwkv_world"):
        return
    queues: weakref.WeakKeyDictionary[Any, Admission] = weakref.WeakKeyDictionary()

    @functools.wraps(ask_async)
    async def generate_async(
        self: Any, prompt: Any, generation_config: Any, request_id: str
    ) -> AsyncIterator[Any]:
        asked = ask_async(self, prompt, generation_config, request_id)
        if not is_world_artifact(self.engine_config.model):
            async with aclosing(asked):
                async for outputs in asked:
                    yield outputs
            return
        queue = queues.setdefault(self, Admission(self.engine_config.max_num_sequence))
        ticket = Ticket(_length(self, prompt), generation_config.n)
        try:
            await queue.enter(ticket)
        except UsageError as err:
            # What the host's server answers with status 400; every other error is its 500.
            raise _bad_request(str(err)) from err
        try:
            # Where the consumer goes away, the engine drops the request before the next comes in.
            async with aclosing(asked):
                async for outputs in asked:
                    queue.has_read(ticket)
                    yield outputs
        finally:
            queue.leave(ticket)

    @functools.wraps(ask)
    def generate(self: Any, prompt: Any, generation_config: Any, request_id: str) -> Iterator[Any]:
        if is_world_artifact(self.engine_config.model):
            Admission(self.engine_config.max_num_sequence).check(
                Ticket(_length(self, prompt), generation_config.n)
            )
        yield from ask(self, prompt, generation_config, request_id)

    generate_async.rwkv_world = generate.rwkv_world = True  # type: ignore[attr-defined]
    asynchronous._generate, synchronous._generate = generate_async, generate


def _bad_request(message: str) -> Exception:
    from mlc_llm.protocol import error_protocol

    return error_protocol.BadRequestError(message)  # type: ignore[no-any-return]


def _length(engine: Any, prompt: Any) -> int:
    """How many tokens a prompt has, in each of the forms that the engine takes."""
    if isinstance(prompt, str):
        return len(engine.tokenizer.encode(prompt))
    return sum(1 if isinstance(part, int) else _length(engine, part) for part in prompt)


@dataclasses.dataclass
class Ticket:
    """A request: the tokens that are still to be read, and the sequences that it needs."""

    tokens: int
    sequences: int


class Admission:
    """Lets requests of one event loop in, in the order in which they come.

    Those inside have `sequences` sequences together at most, and prompts that are still to be
    read of ENGINE_PREFILL_TOKENS together.
    """

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self._inside: list[Ticket] = []
        self._waiting: deque[tuple[Ticket, asyncio.Future[None]]] = deque()

    def check(self, ticket: Ticket) -> None:
        """Raises UsageError where a request could never come in."""
        if ticket.tokens > ENGINE_PREFILL_TOKENS:
            raise UsageError(
                f"The prompt has {ticket.tokens} tokens, and this engine reads at most "
                f"{ENGINE_PREFILL_TOKENS} at once. mlc_chat_cli has no such limit."
            )
        if ticket.sequences > self.sequences:
            raise UsageError(
                f"n is {ticket.sequences}, and the engine has max_num_sequence={self.sequences}."
            )

    async def enter(self, ticket: Ticket) -> None:
        self.check(ticket)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been let in while it was cancelled.
            self.leave(ticket)
            raise

    def has_read(self, ticket: Ticket) -> None:
        """The first output says that the prompt has been read."""
        ticket.tokens = 0
        self._admit()

    def leave(self, ticket: Ticket) -> None:
        self._inside = [other for other in self._inside if other is not ticket]
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not ticket)
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            ticket, turn = self._waiting[0]
            together = [*self._inside, ticket]
            if sum(t.sequences for t in together) > self.sequences:
                return
            if sum(t.tokens for t in together) > ENGINE_PREFILL_TOKENS:
                return
            self._waiting.popleft()
            self._inside.append(ticket)
            if not turn.done():
                turn.set_result(None)
