"""Responses that carry answers, whole or as a stream of events, while a client is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mlc_rwkv_world.errors import RwkvWorldError
from mlc_rwkv_world.serving.http.choices import Choice, Delta
from mlc_rwkv_world.serving.http.faults import fault_of
from mlc_rwkv_world.serving.http.service import Service
from mlc_rwkv_world.serving.requests import Event, Request, Usage

# Seconds, up to twice as many, after which a stream says that it is alive, and its head goes out
# without a token.
_SIGN_OF_LIFE = 15.0
_DONE = b"data: [DONE]\n\n"


class Form(Protocol):
    """How an endpoint writes answers."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before any text."""

    def chunk(self, index: int, choice: Choice, delta: Delta) -> dict[str, Any]:
        """A chunk of a stream."""

    def last(self, usage: dict[str, Any] | None, timings: dict[str, Any]) -> dict[str, Any] | None:
        """What follows the last chunk; `usage` is given where it was asked for."""

    def whole(
        self, choices: Sequence[tuple[Choice, list[Delta]]], usage: dict[str, Any]
    ) -> dict[str, Any]:
        """All of it in one."""


class Answers:
    """The choices of one request to an endpoint, in work; closed, they end."""

    def __init__(
        self, service: Service, requests: Sequence[Request], choice: Callable[[], Choice]
    ) -> None:
        """Hands `requests` in, which raises what `Service.submit` does."""
        self.choices = [choice() for _ in requests]
        self._heard: list[tuple[int, Event]] = []
        self._something = asyncio.Event()
        self._quiet = True
        self._tickets = service.submit(requests, self._hear)

    def _hear(self, index: int, event: Event) -> None:
        self._heard.append((index, event))
        self._something.set()

    async def deltas(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        """What a step has brought, with the indices of the choices; nothing as a sign of life.

        Raises the error of the first choice that fails, behind what came before it.
        """
        signs = asyncio.ensure_future(self._signs_of_life())
        try:
            while not all(choice.over for choice in self.choices):
                await self._something.wait()
                self._something.clear()
                heard, self._heard = self._heard, []
                self._quiet = not heard
                found: list[tuple[int, Delta]] = []
                try:
                    for index, event in heard:
                        found += [(index, delta) for delta in self.choices[index].push(event)]
                except RwkvWorldError:
                    if found:
                        yield found
                    raise
                if found or not heard:
                    yield found
        finally:
            signs.cancel()

    async def _signs_of_life(self) -> None:
        """Wake it where nothing was heard for long: a timer for each event would cost more."""
        while True:
            self._quiet = True
            await asyncio.sleep(_SIGN_OF_LIFE)
            if self._quiet:
                self._something.set()

    def close(self) -> None:
        """End what has not ended."""
        for ticket in self._tickets:
            ticket.cancel()

    def usage(self, prompts: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tokens and timings of all choices; each of `prompts` prompts counts once."""
        usages = [choice.usage for choice in self.choices]
        firsts = usages[:: max(1, len(usages) // prompts)]
        return _usage(firsts, usages), _timings(firsts, usages)


class AnswerResponse(Response):
    """Sends answers as `form` writes them, and ends them when the client goes away."""

    def __init__(
        self,
        answers: Answers,
        form: Form,
        *,
        stream: bool,
        prompts: int = 1,
        include_usage: bool = False,
    ) -> None:
        super().__init__()
        self._answers = answers
        self._form = form
        self._stream = stream
        self._prompts = prompts
        self._include_usage = include_usage
        # Choices whose first chunk was written.
        self._opened: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        work = self._send_stream(send) if self._stream else self._send_whole(scope, receive, send)
        try:
            await _while_there(receive, work)
        finally:
            self._answers.close()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = self._answers
        found: list[list[Delta]] = [[] for _ in answers.choices]
        response: Response
        try:
            async with aclosing(answers.deltas()) as deltas:
                async for new in deltas:
                    for index, delta in new:
                        found[index].append(delta)
            usage, timings = answers.usage(self._prompts)
            body = self._form.whole(list(zip(answers.choices, found, strict=True)), usage)
            response = Response(encoded({**body, "timings": timings}), 200, media_type=_JSON)
        except Exception as error:
            response = response_of(error)
        await response(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        started = False
        try:
            async with aclosing(self._answers.deltas()) as deltas:
                async for new in deltas:
                    # Choices of one step go out together.
                    data = b"".join(self._events(new)) if new else b": alive\n\n"
                    if not started:
                        started = True
                        await _start_stream(send)
                    await _send_part(send, data)
            data = b"".join(self._last_events())
        except Exception as error:
            if not started:
                await response_of(error)({"type": "http"}, _no_more, send)
                return
            data = _event(fault_of(error).body)
        await _send_part(send, data, more=False)

    def _events(self, new: Sequence[tuple[int, Delta]]) -> Iterator[bytes]:
        form = self._form
        for index, delta in new:
            if index not in self._opened:
                self._opened.add(index)
                if (opening := form.opening(index)) is not None:
                    yield self._chunk(opening)
            yield self._chunk(form.chunk(index, self._answers.choices[index], delta))

    def _chunk(self, value: dict[str, Any]) -> bytes:
        # As OpenAI has it: where usage is asked for, every chunk has the field.
        return _event({**value, "usage": None} if self._include_usage else value)

    def _last_events(self) -> Iterator[bytes]:
        usage, timings = self._answers.usage(self._prompts)
        last = self._form.last(usage if self._include_usage else None, timings)
        if last is not None:
            yield _event(last)
        yield _DONE


_JSON = "application/json"
# `json.dumps` would make one for each token.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encoded(value: Any) -> bytes:
    """`value` as JSON in UTF-8."""
    return _ENCODER.encode(value).encode()


def response_of(error: Exception) -> JSONResponse:
    """The response for an error."""
    fault = fault_of(error)
    return JSONResponse(fault.body, fault.status, fault.headers)


async def _while_there(receive: Receive, work: Any) -> None:
    """Do `work` until it is done or the client has gone."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        for task in (working, watching):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _no_more() -> Any:
    return {"type": "http.disconnect"}


async def _start_stream(send: Send) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        # nginx would gather events.
        (b"x-accel-buffering", b"no"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send_part(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def _event(value: Any) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"


def _usage(prompts: Sequence[Usage], answers: Sequence[Usage]) -> dict[str, Any]:
    read = sum(usage.prompt_tokens for usage in prompts)
    written = sum(usage.completion_tokens for usage in answers)
    cached = sum(usage.cached_tokens for usage in prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _timings(prompts: Sequence[Usage], answers: Sequence[Usage]) -> dict[str, Any]:
    """As llama.cpp's server gives them; each is the sum over answers."""
    read = sum(usage.prompt_tokens - usage.cached_tokens for usage in prompts)
    reading = sum(usage.reading for usage in prompts)
    written = sum(usage.completion_tokens for usage in answers)
    answering = sum(usage.answering for usage in answers)
    return {
        "cache_n": sum(usage.cached_tokens for usage in prompts),
        "prompt_n": read,
        "prompt_ms": round(1e3 * reading, 3),
        "prompt_per_second": round(read / reading, 3) if reading > 0 else None,
        "predicted_n": written,
        "predicted_ms": round(1e3 * answering, 3),
        "predicted_per_second": round(written / answering, 3) if answering > 0 else None,
        "queue_ms": round(1e3 * sum(usage.waited for usage in answers), 3),
    }
