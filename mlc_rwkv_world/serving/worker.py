"""The thread that owns a batching engine; every other thread speaks to it through here."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from mlc_rwkv_world.errors import RwkvWorldError
from mlc_rwkv_world.serving.batch import BatchEngine
from mlc_rwkv_world.serving.requests import Busy, Event, Failed, Finished, Request
from mlc_rwkv_world.serving.sequence import Sequence

T = TypeVar("T")
Command = Callable[[], None]
# Gets what tickets were told in one step, in its order, on the engine's thread.
Deliver = Callable[[list[tuple["Ticket", Event]]], None]


class Stopped(RwkvWorldError):
    """The engine answers no more."""


class Ticket:
    """A request that was handed in; whoever has it is told of its events with it."""

    def __init__(self, request: Request, worker: Worker) -> None:
        self.request = request
        self.sequence: Sequence | None = None
        self.over = False
        self._worker = worker

    def cancel(self) -> None:
        """End the request, if it has not ended; its slot is free within a step."""
        if not self.over:
            self._worker.cancel(self)


class Worker:
    """Runs the steps of `batch` on a thread of its own while there is something to do.

    `deliver` gets the events; `died` is called when the thread breaks down, after every open
    request was told that it failed.
    """

    def __init__(
        self,
        batch: BatchEngine,
        deliver: Deliver,
        died: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.batch = batch
        self.error: BaseException | None = None
        self._deliver = deliver
        self._died = died
        # What to do, and what instead where it cannot be done any more.
        self._commands: deque[tuple[Command, Callable[[Stopped], None]]] = deque()
        self._wake = threading.Condition()
        self._open: set[Ticket] = set()
        self._outbox: list[tuple[Ticket, Event]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self.error is None and not self._stopping

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def submit(self, *requests: Request) -> list[Ticket]:
        """Hand requests in, all or none; raises Busy or Stopped."""
        tickets = [Ticket(request, self) for request in requests]
        with self._wake:
            if not self.alive:
                raise Stopped("The engine has stopped and takes no more requests.")
            limit = self.batch.slots + self.batch.queue
            if len(self._open) + len(tickets) > limit:
                raise Busy(
                    f"{len(self._open)} requests are open, and {limit} may be. Try again later."
                )
            self._open.update(tickets)
            for ticket in tickets:
                self._commands.append((partial(self._insert, ticket), _nothing))
            self._wake.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """End a request, see `Ticket.cancel`."""

        def remove() -> None:
            if ticket.sequence is not None:
                self.batch.remove(ticket.sequence)

        self._command(remove, _nothing)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """What `function` gives, run on the engine's thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        if not self._command(run, future.set_exception):
            future.set_exception(Stopped("The engine has stopped."))
        return future

    def abandon(self) -> None:
        """End all requests; the thread ends after its step. Can be called by a signal's handler."""
        self._stopping = True

    def stop(self) -> None:
        """End all requests, and the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _insert(self, ticket: Ticket) -> None:
        """Put a request that was handed in into the batch; on the engine's thread."""

        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                self._close(ticket)
            self._outbox.append((ticket, event))

        try:
            ticket.sequence = self.batch.insert(ticket.request, sink)
        except RwkvWorldError as error:
            sink(Failed(error))

    def _command(self, command: Command, drop: Callable[[Stopped], None]) -> bool:
        with self._wake:
            if self.error is not None or self._stopping:
                return False
            self._commands.append((command, drop))
            self._wake.notify()
        return True

    def _close(self, ticket: Ticket) -> None:
        ticket.over = True
        with self._wake:
            self._open.discard(ticket)

    def _run(self) -> None:
        try:
            self.batch.engine.enter_thread()
            while self._work():
                pass
        except BaseException as error:
            self._break_down(error)
        else:
            self._end_all(Stopped("The server ends."))

    def _work(self) -> bool:
        """One round; False at the end."""
        with self._wake:
            while not (self._commands or self._stopping or self.batch.busy):
                self._wake.wait()
            if self._stopping:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command, _ in commands:
            command()
        if self.batch.busy:
            self.batch.step()
        self._flush()
        return True

    def _flush(self) -> None:
        if self._outbox:
            events, self._outbox = self._outbox, []
            self._deliver(events)

    def _break_down(self, error: BaseException) -> None:
        with self._wake:
            self.error = error
        self._end_all(Stopped(f"The engine has broken down: {type(error).__name__}: {error}"))
        self._died(error)

    def _end_all(self, reason: Stopped) -> None:
        with self._wake:
            commands, tickets = list(self._commands), list(self._open)
            self._commands.clear()
            self._open.clear()
        for ticket in tickets:
            ticket.over = True
            self._outbox.append((ticket, Failed(reason)))
        for _, drop in commands:
            drop(reason)
        self._flush()


def _nothing(reason: Stopped) -> None:
    """For commands that nobody waits for."""
