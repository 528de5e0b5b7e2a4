"""The server's process: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from mlc_rwkv_world import console
from mlc_rwkv_world.errors import RwkvWorldError, UsageError
from mlc_rwkv_world.serving.http.connections import protocol_of
from mlc_rwkv_world.serving.http.service import Service

# Seconds in which events that tell of an error reach those who wait.
_LAST_WORDS = 5
# Seconds for which one thread may keep the interpreter from another. The engine's needs it for
# moments between two steps, and with Python's own 5 ms waits there while the loop sends tokens.
_SWITCH_INTERVAL = 5e-4


class BrokenDown(RwkvWorldError):
    """The engine's thread has ended by an error."""

    exit_status = 70


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; UsageError where it cannot."""
    if not 0 <= port < 1 << 16:
        # The system would take what is left of it modulo 65536.
        raise UsageError(f"--port {port}: give a number from 0 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{host} port {port}: {reason}. Give another --host or --port.") from None
    return listening


def run(
    service: Service,
    app: ASGIApp,
    listening: socket.socket,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes: then no more requests are taken, and answers may end.

    A second signal ends them at once. Raises BrokenDown where the engine has broken down.
    """
    limits = service.limits
    _allow_files(limits.connections + 64)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    config = uvicorn.Config(
        app,
        http=protocol_of(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=int(limits.idle_seconds) or 1,
        timeout_graceful_shutdown=int(limits.drain_seconds) or 1,
    )
    server = _Server(config, service, ready)
    service.died = server.break_down
    console.pass_on_errors("uvicorn", "asyncio")
    server.run(sockets=[listening])
    error = service.worker.error
    if error is not None:
        raise BrokenDown(
            f"the engine has broken down, and all requests with it: {type(error).__name__}: {error}"
        )


class _Server(uvicorn.Server):
    """uvicorn's server, which ends a drained process as one that has done its work."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server; they are not raised again when it has ended."""
        before = {one: signal.signal(one, self._told) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def break_down(self, error: BaseException) -> None:
        """The engine has gone: say so to those who wait, and end."""
        console.complain(f"the engine has broken down: {type(error).__name__}: {error}")
        if self._loop is not None:
            self.config.timeout_graceful_shutdown = _LAST_WORDS
            self._loop.call_soon_threadsafe(self._end)

    def _told(self, number: int, _: object) -> None:
        if self.should_exit:
            self.force_exit = True
            # What does not end by itself is ended.
            self._service.worker.abandon()
        self._end()

    def _end(self) -> None:
        self._service.draining = True
        self.should_exit = True


def _allow_files(count: int) -> None:
    """Let this process have so many connections, as far as it may."""
    try:
        import resource
    except ImportError:
        # Windows sets no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
