"""What the host's engine is given, and what its tokens become, without a host."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlc_rwkv_world.artifact.layout import CHAT_CONFIG
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.stock.defects import DEFECTS, Defect
from mlc_rwkv_world.stock.limits import ENGINE_PREFILL_TOKENS
from mlc_rwkv_world.stock.serving import (
    ENGINE_SETTINGS,
    Admission,
    Ticket,
    WorldStreamer,
    add_admission,
    add_text_streamer,
)
from mlc_rwkv_world.tokenizer import WorldTokenizer


def test_characters_that_span_tokens() -> None:
    tokenizer = WorldTokenizer.default()
    text = "A 🦤🪼 𠜎𠜱𠝹."
    stream = WorldStreamer()
    pieces = [stream.put([i]) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text and "" in pieces
    assert stream.finish() == ""
    stream = WorldStreamer()
    assert stream.put(tokenizer.encode("ab🦤")[:-1]) == "ab"
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_ids_without_a_token_are_no_text() -> None:
    stream = WorldStreamer()
    assert stream.put([24281, 0, 65530, 65535, 59]) == "User:"
    assert stream.put([65529]) == " " * 128


def test_other_tokenizers_keep_their_streamer() -> None:
    class Original:
        def __init__(self, tokenizer: object) -> None:
            self.tokenizer = tokenizer

    tokenizers = SimpleNamespace(TextStreamer=Original)
    Original.__name__ = "TextStreamer"
    add_text_streamer(tokenizers)  # type: ignore[arg-type]
    chosen = tokenizers.TextStreamer
    add_text_streamer(tokenizers)  # type: ignore[arg-type]
    assert tokenizers.TextStreamer is chosen
    other = SimpleNamespace(encode=lambda text: [1, 2])
    assert chosen(other).tokenizer is other
    assert isinstance(chosen(WorldTokenizer.default()), WorldStreamer)


async def _crowd(
    admission: Admission, tickets: list[Ticket], check: Callable[[], None]
) -> list[int]:
    """Each request reads, answers for a while, and leaves; the order in which they came in."""
    came: list[int] = []

    async def request(number: int, ticket: Ticket) -> None:
        await admission.enter(ticket)
        came.append(number)
        check()
        await asyncio.sleep(0)
        admission.has_read(ticket)
        for _ in range(number % 3 + 1):
            await asyncio.sleep(0)
        admission.leave(ticket)

    await asyncio.gather(*(request(i, ticket) for i, ticket in enumerate(tickets)))
    return came


def test_no_more_than_the_engine_holds() -> None:
    admission = Admission(4)
    most = 0

    def check() -> None:
        nonlocal most
        inside = admission._inside
        assert sum(t.tokens for t in inside) <= ENGINE_PREFILL_TOKENS
        most = max(most, sum(t.sequences for t in inside))

    tickets = [Ticket(3000, 1 + i % 2) for i in range(20)]
    assert asyncio.run(_crowd(admission, tickets, check)) == list(range(20))
    assert 2 <= most <= 4
    tickets = [Ticket(10, 1) for _ in range(20)]
    asyncio.run(_crowd(admission, tickets, check))
    assert most == 4 and not admission._inside


def test_requests_that_could_never_come_in() -> None:
    with pytest.raises(UsageError, match="8193 tokens"):
        Admission(4).check(Ticket(ENGINE_PREFILL_TOKENS + 1, 1))
    with pytest.raises(UsageError, match="max_num_sequence=4"):
        Admission(4).check(Ticket(1, 5))


def test_a_request_that_is_cancelled_while_it_waits() -> None:
    async def run() -> None:
        admission = Admission(1)
        first, second, third = Ticket(1, 1), Ticket(1, 1), Ticket(1, 1)
        await admission.enter(first)
        waits = asyncio.create_task(admission.enter(second))
        also = asyncio.create_task(admission.enter(third))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.sleep(0)
        assert not also.done()
        admission.leave(first)
        await also
        assert admission._inside == [third]

    asyncio.run(run())


class _Host:
    """The host's two engines, of which the first notes what it is asked."""

    def __init__(self, folder: Path, model_type: str) -> None:
        (folder / CHAT_CONFIG).write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        calls: list[str] = []
        config = SimpleNamespace(model=str(folder), max_num_sequence=1)

        class AsyncMLCEngine:
            engine_config = config

            async def _generate(
                self, prompt: list[int], generation_config: object, request_id: str
            ) -> AsyncGenerator[str]:
                calls.append(f"add {request_id}")
                try:
                    for _ in range(3):
                        yield "token"
                except GeneratorExit:
                    calls.append(f"abort {request_id}")
                    raise

        class MLCEngine:
            def _generate(self, prompt: object, generation_config: object, request_id: str) -> None:
                raise AssertionError

        self.calls, self.AsyncMLCEngine, self.MLCEngine = calls, AsyncMLCEngine, MLCEngine


@pytest.mark.parametrize(
    ("model_type", "order"),
    [
        # One sequence is all that the engine holds.
        ("rwkv_world", ["add first", "abort first", "add second"]),
        ("llama", ["add first", "add second", "abort first"]),
    ],
)
def test_an_answer_that_is_left_early(tmp_path: Path, model_type: str, order: list[str]) -> None:
    """The engine drops it before the next request comes in."""
    host = _Host(tmp_path, model_type)
    add_admission(host)  # type: ignore[arg-type]
    engine = host.AsyncMLCEngine()
    one = SimpleNamespace(n=1)

    async def whole(request_id: str) -> list[str]:
        return [text async for text in engine._generate([1, 2], one, request_id)]

    async def run() -> None:
        first = engine._generate([1, 2], one, "first")
        assert await anext(first) == "token"
        second = asyncio.create_task(whole("second"))
        await asyncio.sleep(0)
        await first.aclose()
        # Not some time later, when it is collected.
        assert "abort first" in host.calls
        assert await second == ["token"] * 3

    asyncio.run(run())
    assert host.calls == order


def test_a_defect_that_a_version_fixed() -> None:
    defect = Defect("name", "symptom", "answer", fixed_in="0.21")
    assert defect.present_in(None) and defect.present_in("0.20.0.dev5")
    assert not defect.present_in("0.21.0") and not defect.present_in("1.0")
    assert set(ENGINE_SETTINGS) <= {defect.name for defect in DEFECTS}
