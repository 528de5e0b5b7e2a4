"""Connections with limits of time: for a request's head, and for what nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mlc_rwkv_world.serving.limits import Limits


def protocol_of(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol that uvicorn is to speak.

    uvicorn waits for ever where a client connects and says nothing, sends half a head, or does
    not read what it is sent.
    """

    class Protocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections and not self._make_room():
                transport.abort()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_waiting:
                if self._head is None and self.timeout_keep_alive_task is None:
                    self._await_head()
            else:
                self._head = _cancelled(self._head)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head = _cancelled(self._head)
            self._stall = _cancelled(self._stall)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stall = _cancelled(self._stall)
            self._stall = self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._stall = _cancelled(self._stall)
            super().resume_writing()

        @property
        def _is_waiting(self) -> bool:
            """Whether no request is at hand."""
            return self.cycle is None or self.cycle.response_complete

        def _await_head(self) -> None:
            self._head = self.loop.call_later(limits.head_seconds, self._end_without_head)

        def _end_without_head(self) -> None:
            self._head = None
            if self._is_waiting:
                self.transport.abort()

        def _make_room(self) -> bool:
            """End a connection on which nothing is asked, so that another can be there."""
            for other in self.connections:
                if other is not self and isinstance(other, Protocol) and other._is_waiting:
                    self.connections.discard(other)
                    other.transport.abort()
                    return True
            return False

    return Protocol


def _cancelled(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
    return None
