"""Answers are the same whoever else is answered, and whatever was read before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.runtime import Engine
from mlc_rwkv_world.serving import (
    BatchEngine,
    Busy,
    Failed,
    Finished,
    Origin,
    Request,
    StateCache,
    Token,
)
from mlc_rwkv_world.serving.requests import Event, PromptScores, PromptState, Usage

pytestmark = pytest.mark.slow
QUESTIONS = ["What is the capital of France?", "Say hello.", "What colour is the sky?", "你好"]
BUDGET = 64 << 20


def prompts(count: int) -> list[str]:
    return [f"User: {QUESTIONS[i % 4]}{' ' * (i // 4)}\n\nAssistant:" for i in range(count)]


def long_prompt(engine: Engine, tokens: int) -> np.ndarray:
    numbers = np.random.default_rng(5).integers(300, 20000, tokens)
    return numbers.astype(np.int32)


def expected(engine: Engine, prompt: str, seed: int, tokens: int = 12) -> str:
    return "".join(engine.generate(prompt, seed=seed, temperature=1.3, max_tokens=tokens))


def request(engine: Engine, prompt: str, **more: object) -> Request:
    sampling = engine.sampling.changed({"temperature": 0.0})
    return replace(Request(engine.encode(prompt), sampling, max_tokens=12), **more)  # type: ignore[arg-type]


class Heard(list[Event]):
    """A sink, and what it was told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self if isinstance(event, Token))

    @property
    def usage(self) -> Usage:
        assert isinstance(self[-1], Finished), self
        return self[-1].usage

    @property
    def reason(self) -> str:
        assert isinstance(self[-1], Finished), self
        return self[-1].reason


def run(batch: BatchEngine, *requests: Request) -> list[Heard]:
    heard = [Heard() for _ in requests]
    for one, sink in zip(requests, heard, strict=True):
        batch.insert(one, sink)
    drain(batch)
    return heard


def drain(batch: BatchEngine) -> None:
    while batch.busy:
        batch.step()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("count", [1, 8, 32])
def test_an_answer_is_what_the_engine_gives_alone(engine: Engine, count: int, cached: bool) -> None:
    batch = BatchEngine(engine, slots=16, cache=StateCache(BUDGET) if cached else None)
    texts = prompts(count)
    alone = [expected(engine, text, seed=index) for index, text in enumerate(texts)]
    sampling = engine.sampling.changed({"temperature": 1.3})
    asked = [
        Request(engine.encode(text), sampling, seed=index, max_tokens=12)
        for index, text in enumerate(texts)
    ]
    for _ in range(2):
        heard = [Heard() for _ in asked]
        for one, sink in zip(asked, heard, strict=True):
            batch.insert(one, sink)
        batch.step()
        # Arrives in between, and is read in pieces beside the others.
        long = Heard()
        ids = long_prompt(engine, 4000 if count == 32 else 400)
        batch.insert(Request(ids, sampling, seed=1, max_tokens=2), long)
        drain(batch)
        assert [sink.text for sink in heard] == alone
        assert long.usage.prompt_tokens == len(ids)
    assert (heard[0].usage.cached_tokens > 0) == cached
    assert batch.counts == (0, 0, 0)


def test_generate_answers_many_prompts(engine: Engine) -> None:
    said: list[tuple[int, int]] = []
    results = BatchEngine(engine, slots=4).generate(
        prompts(9),
        seed=3,
        sampling=engine.sampling.changed({"temperature": 1.3}),
        max_tokens=12,
        progress=lambda done, total: said.append((done, total)),
    )
    assert [r.text for r in results] == [expected(engine, text, seed=3) for text in prompts(9)]
    assert said[-1] == (9, 9) and [done for done, _ in said] == sorted({d for d, _ in said})
    ids = engine.encode(prompts(1)[0])
    assert BatchEngine(engine).generate([ids], max_tokens=1)[0].usage.prompt_tokens == len(ids)


def test_a_prompt_that_was_read_is_not_read_again(engine: Engine) -> None:
    batch = BatchEngine(engine, cache=StateCache(BUDGET))
    first, second = request(engine, "One, two, three, four."), request(engine, "One, two, three, 5")
    (cold,) = run(batch, first)
    (warm,) = run(batch, first)
    assert warm.text == cold.text
    # All but the token whose logits are wanted.
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, len(first.ids) - 1)
    (other,) = run(batch, second)
    assert other.text == run(BatchEngine(engine), second)[0].text
    (uncached,) = run(batch, replace(first, cached=False))
    assert (uncached.usage.cached_tokens, uncached.text) == (0, cold.text)


def test_a_conversation_goes_on_from_its_last_answer(engine: Engine) -> None:
    batch = BatchEngine(engine, cache=StateCache(BUDGET))
    first = request(engine, prompts(1)[0], stop=StopRule(("\n\n",)))
    (answer,) = run(batch, first)
    tokens = [event.id for event in answer if isinstance(event, Token)]
    ids = np.array([*first.ids, *tokens, *engine.encode("\n\nUser: And of Spain?")], np.int32)
    (second,) = run(batch, replace(first, ids=ids))
    assert second.usage.cached_tokens >= len(first.ids) + len(tokens) - 1
    assert second.text == run(BatchEngine(engine), replace(first, ids=ids))[0].text


def test_a_common_beginning_is_read_once(engine: Engine) -> None:
    common = long_prompt(engine, 700)
    asked = [
        Request(np.append(common, np.int32(300 + i)), engine.sampling, seed=i, max_tokens=3)
        for i in range(6)
    ]
    heard = run(BatchEngine(engine, cache=StateCache(BUDGET)), *asked)
    assert sorted(sink.usage.cached_tokens for sink in heard) == [0, *[700] * 5]
    alone = run(BatchEngine(engine), *asked)
    assert [sink.text for sink in heard] == [sink.text for sink in alone]


def test_who_waits_for_a_request_that_is_removed_reads_itself(engine: Engine) -> None:
    batch = BatchEngine(engine, cache=StateCache(BUDGET))
    common = long_prompt(engine, 900)
    asked = [Request(np.append(common, np.int32(i)), engine.sampling, max_tokens=1) for i in (1, 2)]
    sinks = [Heard(), Heard(), Heard()]
    leader = batch.insert(asked[0], sinks[0])
    batch.insert(asked[1], sinks[1])
    batch.insert(asked[1], sinks[2])
    batch.step()
    assert batch.counts == (0, 1, 2)
    batch.remove(leader)
    drain(batch)
    assert sinks[0].reason == "cancelled"
    assert [sinks[i].usage.cached_tokens for i in (1, 2)] == [256, 900]


def test_a_short_prompt_passes_a_long_one(engine: Engine) -> None:
    batch = BatchEngine(engine)
    order: list[str] = []
    names = {"long": 3000, "short": 20}
    for name, length in names.items():
        ids = long_prompt(engine, length)

        def sink(event: Event, name: str = name) -> None:
            if isinstance(event, Finished):
                order.append(name)

        batch.insert(Request(ids, engine.sampling, max_tokens=1), sink)
        batch.step()
    drain(batch)
    assert order == ["short", "long"]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_removing_frees_the_slot_at_once(engine: Engine, steps: int) -> None:
    batch = BatchEngine(engine, slots=1)
    heard, other = Heard(), Heard()
    going = batch.insert(request(engine, "1 2 3", max_tokens=1000), heard)
    for _ in range(steps):
        batch.step()
    batch.remove(going)
    batch.remove(going)
    assert heard.reason == "cancelled" and batch.counts == (0, 0, 0)
    batch.insert(request(engine, "1 2 3"), other)
    drain(batch)
    assert other.text == run(BatchEngine(engine), request(engine, "1 2 3"))[0].text


def test_the_queue_is_bounded(engine: Engine) -> None:
    batch = BatchEngine(engine, slots=2, queue=3)
    for _ in range(5):
        batch.insert(request(engine, "1 2 3"), Heard())
    with pytest.raises(Busy, match="wait already"):
        batch.insert(request(engine, "1 2 3"), Heard())
    batch.step()
    assert batch.counts == (2, 0, 3)
    drain(batch)
    batch.insert(request(engine, "1 2 3"), Heard())


def test_a_request_ends_in_time(engine: Engine) -> None:
    batch = BatchEngine(engine, slots=1)
    late, waiting = Heard(), Heard()
    deadline = time.monotonic() + 0.05
    batch.insert(request(engine, "1 2 3", max_tokens=10**6, deadline=deadline), late)
    batch.insert(request(engine, "1 2 3", deadline=deadline), waiting)
    while batch.busy:
        batch.step()
    assert (late.reason, waiting.reason) == ("timeout", "timeout")
    assert waiting.usage.completion_tokens == 0


def test_an_answer_ends_before_its_state_is_kept(engine: Engine) -> None:
    """That takes as long as some tokens, which nobody is to wait for."""
    cache = StateCache(BUDGET)
    batch, kept = BatchEngine(engine, cache=cache), []
    asked = request(engine, "1 2 3")
    batch.insert(asked, lambda event: kept.append((type(event), cache.bytes)))
    while batch.busy:
        batch.step()
    assert kept[-1][0] is Finished
    assert cache.bytes > kept[-1][1] > 0


def test_scores_of_a_prompt_are_those_of_perplexity(engine: Engine) -> None:
    text = "The capital of France is Paris."
    asked = request(
        engine, text, max_tokens=0, top_scores=2, score_prompt=True, ids=with_end(engine, text)
    )
    batch = BatchEngine(engine, cache=StateCache(BUDGET))
    # Beside another that answers.
    scored, _ = run(batch, asked, request(engine, "Say hello."))
    (found,) = [event for event in scored if isinstance(event, PromptScores)]
    total = -sum(one.log_probability for one in found.scores)
    prediction = predict(engine, text)
    assert len(found.scores) == prediction.tokens
    assert total == pytest.approx(prediction.nats, rel=1e-6)
    assert all(len(one.top) == 2 for one in found.scores)


def with_end(engine: Engine, text: str) -> np.ndarray:
    return np.array([0, *engine.encode(text)], np.int32)


def test_a_state_that_was_made_is_gone_on_from(engine: Engine) -> None:
    batch = BatchEngine(engine, cache=StateCache(BUDGET))
    beginning = request(engine, "User: My name is Eve.\n\n", max_tokens=0, wants_state=True)
    (made,) = run(batch, beginning)
    (state,) = [event for event in made if isinstance(event, PromptState)]
    assert state.tokens == len(beginning.ids)
    origin = Origin("one", state.content, state.tokens)
    rest = request(engine, "User: Who am I?\n\nAssistant:", origin=origin)
    whole = replace(rest, origin=None, ids=np.concatenate([beginning.ids, rest.ids]))
    for _ in range(2):
        (from_state,) = run(batch, rest)
        assert from_state.text == run(BatchEngine(engine), whole)[0].text
    assert from_state.usage.cached_tokens == len(rest.ids) - 1
    # A prompt that begins from nothing finds nothing that began from a state.
    (plain,) = run(batch, replace(rest, origin=None))
    assert plain.usage.cached_tokens == 0
    assert plain.text == run(BatchEngine(engine), replace(rest, origin=None))[0].text


class Forbidding:
    """A guide that allows nothing behind its first tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def mask(self) -> np.ndarray:
        mask = np.zeros(2048, np.uint32)
        if self._tokens:
            mask[self._tokens[0] // 32] = 1 << self._tokens[0] % 32
        return mask

    def take(self, token: int) -> None:
        assert token == self._tokens.pop(0)


def test_a_guide_decides_and_one_that_fails_harms_nobody_else(engine: Engine) -> None:
    wanted = engine.tokenizer.encode(" Madrid")
    guided = request(engine, prompts(1)[0], guide=lambda: Forbidding(wanted))
    plain = request(engine, prompts(1)[0])
    failed, fine = run(BatchEngine(engine), guided, plain)
    assert failed.text == " Madrid"
    assert isinstance(failed[-1], Failed) and isinstance(failed[-1].error, UsageError)
    assert fine.text == run(BatchEngine(engine), plain)[0].text


def test_what_cannot_be_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        Request(np.zeros(0, np.int32), engine.sampling)
    with pytest.raises(UsageError, match="max_tokens"):
        request(engine, "1", max_tokens=-1)
    with pytest.raises(UsageError, match="slots"):
        BatchEngine(engine, slots=0)
