"""Generation on the trained model: text, ends, seeds, and the state that is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime import Engine, Sampler, State

PROMPT = "User: What is the capital of France?\n\nAssistant:"
ANSWER = " The capital of France is Paris."


def text_of(engine: Engine, **options: Any) -> str:
    return "".join(engine.generate(PROMPT, **options))


def expect_read(state: State, text: str) -> None:
    """The state is that of a sequence which has read `text`, in tokens of its own."""
    engine = state.engine
    assert isinstance(engine, Engine)
    other = engine.new_state()
    ids = engine.encode(text)
    engine.prefill(ids, other)
    np.testing.assert_allclose(state.numpy(), other.numpy(), rtol=0, atol=2e-3)
    after = engine.decode(7, state.copy())
    np.testing.assert_allclose(after, engine.decode(7, other), rtol=0, atol=2e-2)


def test_greedy_answer_ends_at_the_stop_string(engine: Engine) -> None:
    assert text_of(engine, temperature=0, stop="\n\n") == ANSWER


def test_without_a_stop_string_the_answer_goes_on(engine: Engine) -> None:
    text = text_of(engine, temperature=0, max_tokens=12)
    assert text.startswith(ANSWER + "\n\n")


def test_prompts_may_be_bytes_or_ids(engine: Engine) -> None:
    for prompt in (PROMPT.encode(), engine.encode(PROMPT), engine.tokenizer.encode(PROMPT)):
        assert "".join(engine.generate(prompt, temperature=0, stop="\n\n")) == ANSWER


def test_seeds_repeat(engine: Engine) -> None:
    hot = {"temperature": 3.0, "top_p": 0.99, "max_tokens": 12}
    assert text_of(engine, seed=1, **hot) == text_of(engine, seed=1, **hot)
    assert text_of(engine, seed=1, **hot) != text_of(engine, seed=2, **hot)


@pytest.mark.parametrize("count", range(1, 9))
def test_max_tokens(engine: Engine, count: int) -> None:
    ids = engine.encode(ANSWER + "\n\n")
    text = text_of(engine, temperature=0, max_tokens=count)
    assert text == engine.tokenizer.decode(ids[:count])


@pytest.mark.parametrize("stop", ["Paris", "aris", " of", ["France", "Paris"], "e is P"])
def test_stop_strings_across_tokens_are_never_shown(engine: Engine, stop: Any) -> None:
    text = text_of(engine, temperature=0, stop=stop)
    stops = [stop] if isinstance(stop, str) else stop
    assert text == ANSWER[: min(ANSWER.index(one) for one in stops if one in ANSWER)]


@pytest.mark.parametrize("count", [1, 3, 6, None])
@pytest.mark.parametrize("stop", ["\n\n", "aris", "e is P"])
def test_the_state_has_read_what_was_shown(engine: Engine, stop: str, count: int | None) -> None:
    state = engine.new_state()
    text = text_of(engine, temperature=0, stop=stop, max_tokens=count, state=state)
    expect_read(state, PROMPT + text)


@pytest.mark.parametrize("pieces", range(1, 6))
def test_the_state_of_an_abandoned_answer(engine: Engine, pieces: int) -> None:
    state = engine.new_state()
    stream = engine.generate(PROMPT, temperature=0, stop="\n\n", state=state)
    shown = [next(stream) for _ in range(pieces)]
    stream.close()
    expect_read(state, PROMPT + "".join(shown))


def scripted(ids: list[int]) -> Callable[..., int]:
    """A sampler's `sample` that chooses `ids` and then the end of text."""
    rest = iter(ids)
    return lambda *_: next(rest, 0)


@pytest.mark.parametrize("count", range(1, 12))
def test_half_characters_and_half_stop_strings_are_not_in_the_state(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Characters of several tokens, and single line feeds, cut everywhere."""
    text = "a\U00020000b\n\U00020001 c\n\n"
    ids = engine.tokenizer.encode(text)
    assert len(ids) >= 11
    monkeypatch.setattr(Sampler, "choose", scripted(ids))
    state = engine.new_state()
    shown = text_of(engine, stop="\n\n", max_tokens=count, state=state)
    read = engine.tokenizer.decode_bytes(ids[:count])
    assert shown == read.decode(errors="ignore").removesuffix("\n\n")
    expect_read(state, PROMPT + shown)


def test_end_of_text_ends_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "choose", scripted(engine.tokenizer.encode("so\n")))
    state = engine.new_state()
    assert text_of(engine, stop="\n\n", state=state) == "so\n"
    expect_read(state, PROMPT + "so\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop string"),
    ],
)
def test_bad_options_are_told_at_the_call(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        engine.generate(PROMPT, **options)


def test_bad_prompts(engine: Engine) -> None:
    with pytest.raises(UsageError, match="at least one token"):
        engine.generate("")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        engine.generate("a\udcff")


def test_a_prompt_of_a_megabyte(engine: Engine) -> None:
    state = engine.new_state()
    prompt = " " * 1_000_000
    assert len(list(engine.generate(prompt, max_tokens=1, state=state))) <= 1
    assert state.tokens_read >= len(engine.encode(prompt)) > engine.metadata.prefill_chunk_size
