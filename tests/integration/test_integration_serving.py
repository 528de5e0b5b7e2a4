"""What the host's engine is given, and what its tokens become, without a host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mlc_rwkv_world.artifact.metadata import ENGINE_PREFILL_TOKENS
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.integration.defects import DEFECTS, Defect
from mlc_rwkv_world.integration.serving import (
    ENGINE_SETTINGS,
    Admission,
    Ticket,
    WorldStreamer,
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


def test_a_defect_that_a_version_fixed() -> None:
    defect = Defect("name", "symptom", "answer", fixed_in="0.21")
    assert defect.present_in(None) and defect.present_in("0.20.0.dev5")
    assert not defect.present_in("0.21.0") and not defect.present_in("1.0")
    assert set(ENGINE_SETTINGS) <= {defect.name for defect in DEFECTS}
