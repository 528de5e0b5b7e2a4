"""What follows a prompt, as it is generated: as texts or as events, in loops of either kind."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.runtime.generate import Event, Generation

T = TypeVar("T")


class Stream(Iterator[str]):
    """Iterates over pieces of text, of whole characters, `async for` as well.

    `events` gives more of the same generation. Whoever leaves the loop early may `close` it, which
    leaves the state that was given as if it had read what was yielded and nothing else.
    """

    def __init__(self, generation: Generation, ids: npt.NDArray[np.int32], *, settle: bool) -> None:
        self._events = _settled(generation, ids, settle=settle)

    def __next__(self) -> str:
        for event in self._events:
            if event.text:
                return event.text
        raise StopIteration

    def __aiter__(self) -> AsyncGenerator[str, None]:
        return _in_threads(self)

    def events(self) -> Events:
        """The same as an `Event` for each token, `async for` as well."""
        return Events(self._events)

    def close(self) -> None:
        """End the generation."""
        self._events.close()


class Events(Iterator[Event]):
    """What each token of a `Stream` gives."""

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events

    def __next__(self) -> Event:
        return next(self._events)

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return _in_threads(self)

    def close(self) -> None:
        """End the generation."""
        self._events.close()


def _settled(
    generation: Generation, ids: npt.NDArray[np.int32], *, settle: bool
) -> Generator[Event, None, None]:
    try:
        yield from generation.events(ids)
    finally:
        # A stream that is still open at the interpreter's end can no longer run anything.
        if settle and not sys.is_finalizing():
            generation.settle()


async def _in_threads(items: Iterator[T]) -> AsyncGenerator[T, None]:
    """Take each item in a thread, where it may take its time; others' work goes on meanwhile."""
    import asyncio

    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(_next, items))
            try:
                found = await asyncio.shield(step)
            except asyncio.CancelledError:
                # A token that was begun is ended: no thread is left behind with the state.
                with suppress(Exception):
                    await step
                raise
            if not found:
                return
            yield found[0]
    finally:
        await asyncio.to_thread(items.close)  # type: ignore[attr-defined]


def _next(items: Iterator[T]) -> tuple[T] | tuple[()]:
    # StopIteration cannot leave a thread.
    for item in items:
        return (item,)
    return ()
