"""The engine's thread answers those that ask from other threads, and tells them when it ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import SECONDS

from mlc_rwkv_world.runtime import Engine, load, tvm_runtime
from mlc_rwkv_world.serving import BatchEngine, Busy, Failed, Finished, Request, Token
from mlc_rwkv_world.serving.requests import Event
from mlc_rwkv_world.serving.worker import Stopped, Ticket, Worker

pytestmark = pytest.mark.slow

Make = Callable[..., tuple[Worker, "queue.Queue[tuple[Ticket, Event]]"]]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    """A running worker, and what it delivers."""
    workers = []

    def making(**options: Any) -> tuple[Worker, queue.Queue[tuple[Ticket, Event]]]:
        events: queue.Queue[tuple[Ticket, Event]] = queue.Queue()

        def deliver(found: list[tuple[Ticket, Event]]) -> None:
            for one in found:
                events.put(one)

        worker = Worker(BatchEngine(engine, **options), deliver)
        workers.append(worker)
        worker.start()
        return worker, events

    yield making
    for worker in workers:
        worker.stop()


def request(engine: Engine, tokens: int) -> Request:
    sampling = engine.sampling.changed({"temperature": 0.0, "logit_bias": {0: -100.0}})
    return Request(engine.encode("1 2 3"), sampling, max_tokens=tokens)


def last(events: queue.Queue[tuple[Ticket, Event]], ticket: Ticket) -> Event:
    """The last event of a ticket."""
    while True:
        found, event = events.get(timeout=SECONDS)
        if found is ticket and isinstance(event, Finished | Failed):
            return event


def test_it_answers_and_sleeps(engine: Engine, make: Make) -> None:
    worker, events = make()
    for _ in range(2):
        (ticket,) = worker.submit(request(engine, 3))
        kinds = [type(events.get(timeout=SECONDS)[1]) for _ in range(4)]
        assert kinds == [Token, Token, Token, Finished]
        assert ticket.over and worker.open_requests == 0
        ticket.cancel()


def test_a_request_is_cancelled_from_another_thread(engine: Engine, make: Make) -> None:
    worker, events = make()
    (ticket,) = worker.submit(request(engine, 10**6))
    assert isinstance(events.get(timeout=SECONDS)[1], Token)
    threading.Thread(target=ticket.cancel).start()
    event = last(events, ticket)
    assert isinstance(event, Finished) and event.reason == "cancelled"
    assert worker.call(lambda: worker.batch.counts).result(SECONDS) == (0, 0, 0)


def test_no_more_requests_are_open_than_may_be(engine: Engine, make: Make) -> None:
    worker, events = make(slots=1, queue=1)
    tickets = worker.submit(request(engine, 10**6), request(engine, 1))
    with pytest.raises(Busy, match="2 requests are open"):
        worker.submit(request(engine, 1))
    for ticket in tickets:
        ticket.cancel()
        last(events, ticket)
    (ticket,) = worker.submit(request(engine, 1))
    assert isinstance(last(events, ticket), Finished)


def test_it_runs_on_as_many_threads_as_the_engine(
    demo_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM has a pool for each thread that calls it."""
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    worker = Worker(BatchEngine(load(demo_artifact("q0f32"), "cpu", threads=2)), lambda _: None)
    worker.start()
    count = tvm_runtime.function("runtime.NumThreads")
    assert worker.call(lambda: int(count())).result(SECONDS) == 2
    worker.stop()


def test_a_call_that_fails_harms_only_who_called(engine: Engine, make: Make) -> None:
    worker, events = make()
    future = worker.call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        future.result(SECONDS)
    (ticket,) = worker.submit(request(engine, 1))
    assert isinstance(last(events, ticket), Finished)


def test_stopping_ends_what_is_open(engine: Engine, make: Make) -> None:
    worker, events = make()
    (ticket,) = worker.submit(request(engine, 10**6))
    events.get(timeout=SECONDS)
    worker.stop()
    event = last(events, ticket)
    assert isinstance(event, Failed) and isinstance(event.error, Stopped)
    with pytest.raises(Stopped):
        worker.submit(request(engine, 1))
    with pytest.raises(Stopped):
        worker.call(lambda: 1).result(SECONDS)


def test_a_thread_that_breaks_down_tells_everybody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: queue.Queue[tuple[Ticket, Event]] = queue.Queue()
    died: queue.Queue[BaseException] = queue.Queue()

    def deliver(found: list[tuple[Ticket, Event]]) -> None:
        for one in found:
            events.put(one)

    worker = Worker(BatchEngine(engine), deliver, died.put)
    worker.start()
    tickets = worker.submit(request(engine, 10**6), request(engine, 10**6))
    events.get(timeout=SECONDS)

    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(worker.batch, "step", broken)
    assert str(died.get(timeout=SECONDS)) == "the device is gone"
    seen: dict[Ticket, Failed] = {}
    while len(seen) < 2:
        ticket, event = events.get(timeout=SECONDS)
        if isinstance(event, Failed):
            seen[ticket] = event
    assert set(seen) == set(tickets)
    assert all("device is gone" in str(event.error) for event in seen.values())
    assert not worker.alive and worker.open_requests == 0
    with pytest.raises(Stopped):
        worker.submit(request(engine, 1))
