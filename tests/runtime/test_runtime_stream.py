"""`generate` as events, and in `async for`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlc_rwkv_world.runtime import Engine, Event, Stream

PROMPT = "User: What is the capital of France?\n\nAssistant:"
ANSWER = " The capital of France is Paris."


def stream(engine: Engine, **options: Any) -> Stream:
    return engine.generate(PROMPT, **{"temperature": 0, "stop": "\n\n", **options})


def test_events_are_the_text_token_by_token(engine: Engine) -> None:
    events = list(stream(engine, top_scores=3).events())
    assert "".join(event.text for event in events) == ANSWER == "".join(stream(engine))
    decoded = engine.tokenizer.decode_bytes([event.token for event in events]).decode()
    assert decoded.startswith(ANSWER)
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["stop"]
    for event in events:
        assert len(event.top) == 3
        assert event.log_probability is not None and event.log_probability <= 0
        # Greedy choices are the likeliest.
        token, log_probability = event.top[0]
        assert token == event.token
        assert log_probability == pytest.approx(event.log_probability)


def test_events_without_scores(engine: Engine) -> None:
    events = list(stream(engine, max_tokens=2).events())
    assert len(events) == 2
    assert events[-1].finish_reason == "length"
    assert events[0] == Event(events[0].text, events[0].token)


def test_texts_and_events_are_one_generation(engine: Engine) -> None:
    mixed = stream(engine)
    first = next(mixed)
    assert first + "".join(event.text for event in mixed.events()) == ANSWER
    assert list(mixed) == []


def test_async_gives_the_same(engine: Engine) -> None:
    async def texts() -> list[str]:
        return [text async for text in stream(engine)]

    async def events() -> list[Event]:
        return [event async for event in stream(engine, top_scores=1).events()]

    assert asyncio.run(texts()) == list(stream(engine))
    assert asyncio.run(events()) == list(stream(engine, top_scores=1).events())


@pytest.mark.slow
def test_other_work_goes_on_meanwhile(engine: Engine) -> None:
    async def ask() -> str:
        return "".join([text async for text in stream(engine)])

    async def every() -> list[str]:
        return await asyncio.gather(*(ask() for _ in range(4)))

    assert asyncio.run(every()) == [ANSWER] * 4


def test_a_cancelled_loop_leaves_the_state_as_if_it_ended_there(engine: Engine) -> None:
    state, other = engine.new_state(), engine.new_state()

    async def run() -> str:
        shown: list[str] = []
        reached = asyncio.Event()

        async def read() -> None:
            async for text in stream(engine, state=state):
                shown.append(text)
                if len(shown) == 3:
                    reached.set()
                    await asyncio.sleep(60)

        task = asyncio.create_task(read())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return "".join(shown)

    shown = asyncio.run(run())
    assert ANSWER.startswith(shown)
    engine.prefill(engine.encode(PROMPT + shown), other)
    assert state.tokens_read == other.tokens_read


def test_errors_come_through(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    async def run() -> None:
        async for _ in stream(engine):
            monkeypatch.setattr(engine, "decode", fail)

    with pytest.raises(RuntimeError, match="no more"):
        asyncio.run(run())
