"""Conversations with the trained model: turns, ends, interruptions, files."""

from __future__ import annotations

import signal
import threading
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.errors import NotFoundError, StateError, UsageError
from mlc_rwkv_world.runtime import Engine, Sampler, Sampling, load

FRANCE = "What is the capital of France?"
JAPAN = "What is the capital of Japan?"
GREEDY = Sampling(temperature=0, presence_penalty=0, frequency_penalty=0)


def chat_with(engine: Engine, **options: Any) -> Chat:
    return Chat(engine, **{"sampling": GREEDY, **options})


def say(chat: Chat, message: str) -> str:
    return "".join(chat.ask(message))


def expect_read(chat: Chat, *turns: tuple[str, str]) -> None:
    """The chat has read its primer and `turns`, the text of each answer as the model made it."""
    engine, template, state = chat.engine, chat.template, chat._state
    other = engine.new_state()
    engine.prefill(engine.encode(template.primer), other)
    for message, answer in turns:
        engine.prefill(engine.encode(template.prompt(message) + answer + "\n\n"), other)
    assert state.tokens_read == other.tokens_read
    np.testing.assert_allclose(state.numpy(), other.numpy(), rtol=0, atol=2e-3)


def test_two_turns(engine: Engine) -> None:
    chat = chat_with(engine)
    first, second = say(chat, FRANCE), say(chat, JAPAN)
    assert first == "The capital of France is Paris."
    assert second == "The capital of Japan is Tokyo."
    assert chat.turns == 2
    expect_read(chat, (FRANCE, " " + first), (JAPAN, " " + second))


def test_chinese(engine: Engine) -> None:
    assert say(chat_with(engine), "中国的首都是哪里？") == "中国的首都是北京。"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_max_tokens_ends_an_answer(engine: Engine, count: int) -> None:
    chat = chat_with(engine, max_tokens=count)
    answer = say(chat, FRANCE)
    expect_read(chat, (FRANCE, " " + answer))
    assert answer == " ".join(["The", "capital", "of", "France", "is", "Paris"][:count])


@pytest.mark.parametrize(
    ("generated", "shown", "read"),
    [
        ([" Yes", "\n\n"], "Yes", [" Yes", "\n\n"]),
        ([" Yes", " \n\n"], "Yes ", [" Yes", " \n\n"]),
        ([" 好", "。\n", "\n"], "好。", [" 好", "。\n", "\n"]),
        ([" Yes", "\n", "\n\n"], "Yes", [" Yes", "\n", "\n"]),
        ([" Yes", "\n\n\n\n"], "Yes", [" Yes", "\n\n"]),
        ([" Yes", "\n\n   "], "Yes", [" Yes", "\n\n"]),
        ([" Yes", ""], "Yes", [" Yes", "\n\n"]),
        ([" 好", "。\n", ""], "好。\n", [" 好", "。\n", "\n"]),
        (["\n\n"], "", ["\n\n"]),
    ],
)
def test_stops_in_tokens_of_all_kinds(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    generated: list[str],
    shown: str,
    read: list[str],
) -> None:
    """The blank line alone, merged with its neighbours, cut in two; and the end of text ("")."""

    def tokens(texts: list[str]) -> list[int]:
        return [i for text in texts for i in (engine.tokenizer.encode(text) or [0])]

    chosen = iter(tokens(generated))
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))
    chat = chat_with(engine)
    assert say(chat, FRANCE) == shown
    state = engine.new_state()
    for text in (chat.template.primer, chat.template.prompt(FRANCE)):
        engine.prefill(engine.encode(text), state)
    engine.prefill(tokens(read), state)
    assert chat._state.tokens_read == state.tokens_read
    np.testing.assert_allclose(chat._state.numpy(), state.numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("pieces", range(1, 7))
def test_closing_an_answer(engine: Engine, pieces: int) -> None:
    chat = chat_with(engine)
    stream = chat.ask(FRANCE)
    shown = "".join(next(stream) for _ in range(pieces))
    stream.close()
    expect_read(chat, (FRANCE, " " + shown))
    assert say(chat, JAPAN) == "The capital of Japan is Tokyo."


@pytest.mark.parametrize("function", ["rwkv_world_prefill", "rwkv_world_decode"])
@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("after", [True, False])
def test_interruption_at_every_call(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, function: str, call: int, after: bool
) -> None:
    """Ctrl-C before or after any call of the compiled code, also while it tidies up."""
    real, calls = engine._functions[function], 0

    def interrupting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*arguments) if after or calls != call else None
        if calls == call:
            raise KeyboardInterrupt
        return result

    chat = chat_with(engine)
    shown = ""
    monkeypatch.setitem(engine._functions, function, interrupting)
    try:
        for piece in chat.ask(FRANCE):
            shown += piece
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    before_prompt = function == "rwkv_world_prefill" and call <= 2
    assert chat.turns == (not before_prompt)
    second = say(chat, JAPAN)
    turns = [] if before_prompt else [(FRANCE, " " + shown)]
    expect_read(chat, *turns, (JAPAN, " " + second))


@pytest.mark.slow
def test_real_signals_at_any_moment(engine: Engine) -> None:
    """Whenever a signal comes, the state has read just what was shown, or not even the prompt."""
    answer = say(chat_with(engine), FRANCE)
    seconds = timeit.Timer(lambda: say(chat_with(engine), FRANCE))
    quickest = min(seconds.repeat(repeat=5, number=1))
    prefixes = [answer[: len(piece)] for piece in _growing(engine, FRANCE)]
    random = np.random.default_rng(0)
    cut_short = tries = 0
    while cut_short < 30:
        tries += 1
        assert tries < 600, f"only {cut_short} of these signals came before the answer's end"
        moment = random.uniform(0.0, 1.2 * quickest)
        chat, shown = chat_with(engine), ""
        timer = threading.Timer(moment, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            for piece in chat.ask(FRANCE):
                shown += piece
            timer.join()
        except KeyboardInterrupt:
            pass
        timer.join()
        cut_short += shown != answer
        if chat.turns == 0:
            assert shown == ""
            continue
        # The signal may come after a piece was given and before this loop could note it.
        given = [text for text in prefixes if text.startswith(shown)][:2]
        expect_one_of(chat, [(FRANCE, " " + text if text else "") for text in given])


def _growing(engine: Engine, message: str) -> list[str]:
    """What has been shown of the answer before each piece, and the whole of it."""
    texts = [""]
    for piece in chat_with(engine).ask(message):
        texts.append(texts[-1] + piece)
    return texts


def expect_one_of(chat: Chat, turns: list[tuple[str, str]]) -> None:
    chat._finish()
    failures = []
    for turn in turns:
        try:
            return expect_read(chat, turn)
        except AssertionError as error:
            failures.append(error)
    raise AssertionError(f"the state is none of {turns}") from failures[0]


def test_reset(engine: Engine) -> None:
    chat = chat_with(engine)
    say(chat, FRANCE)
    chat.reset()
    assert (chat.turns, chat.speed.decode_tokens) == (0, 0)
    answer = say(chat, JAPAN)
    expect_read(chat, (JAPAN, " " + answer))


def test_speed_counts_what_was_done(engine: Engine) -> None:
    chat = chat_with(engine)
    say(chat, FRANCE)
    template = chat.template
    read = len(engine.encode(template.primer)) + len(engine.encode(template.prompt(FRANCE)))
    assert chat.speed.prefill_tokens == read
    # The last token, ".\n\n" or "\n\n", is read when the answer is over.
    assert (
        chat.speed.decode_tokens == len(engine.encode(" The capital of France is Paris.\n\n")) - 1
    )
    assert chat.speed.prefill_seconds > 0
    assert str(chat.speed).startswith("prefill: ")
    assert "tok/s, decode: " in str(chat.speed)


def test_seeds_repeat_whole_conversations(engine: Engine) -> None:
    def converse(seed: int) -> list[str]:
        chat = Chat(engine, sampling=Sampling(3.0, 0.99), seed=seed, max_tokens=10)
        return [say(chat, FRANCE), say(chat, JAPAN)]

    assert converse(1) == converse(1)
    assert converse(1) != converse(2)


def test_save_and_load_go_on_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    hot = Sampling(temperature=2.0, top_p=0.95)
    chat = Chat(engine, sampling=hot, seed=3, max_tokens=20)
    say(chat, FRANCE)
    chat.save(tmp_path / "talk")
    expected = [say(chat, JAPAN), say(chat, FRANCE)]
    for seed in (3, 4):
        other = Chat(engine, sampling=hot, seed=seed, max_tokens=20)
        other.load(tmp_path / "talk")
        assert other.turns == 1
        assert [say(other, JAPAN), say(other, FRANCE)] == expected
        np.testing.assert_array_equal(other._state.numpy(), chat._state.numpy())


def test_save_before_the_first_turn(engine: Engine, tmp_path: Path) -> None:
    chat_with(engine).save(tmp_path / "talk")
    other = chat_with(engine)
    other.load(tmp_path / "talk")
    answer = say(other, FRANCE)
    expect_read(other, (FRANCE, " " + answer))


def test_a_plain_state_begins_a_conversation(engine: Engine, tmp_path: Path) -> None:
    state = engine.new_state()
    engine.prefill(engine.encode("User: Hi\n\nAssistant: Hello\n\n"), state)
    state.save(tmp_path / "state")
    chat = chat_with(engine)
    chat.load(tmp_path / "state")
    assert chat._state.tokens_read == state.tokens_read
    assert say(chat, FRANCE) == "The capital of France is Paris."


@pytest.mark.slow
def test_files_that_do_not_fit_change_nothing(
    engine: Engine, demo_artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    from mlc_rwkv_world.runtime import load

    other = Chat(load(demo_artifact("q4f16_1")), sampling=GREEDY)
    chat = chat_with(engine)
    chat.save(tmp_path / "talk")
    say(other, FRANCE)
    before = other._state.numpy()
    with pytest.raises(StateError, match="belongs to the model"):
        other.load(tmp_path / "talk")
    with pytest.raises(NotFoundError):
        other.load(tmp_path / "none")
    np.testing.assert_array_equal(other._state.numpy(), before)
    assert other.turns == 1


def test_a_file_that_cannot_be_written(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        chat_with(engine).save(tmp_path / "no/such/folder/talk")


@pytest.mark.parametrize("message", ["", " \n\n ", "a\udcff"])
def test_messages_that_are_none(engine: Engine, message: str) -> None:
    chat = chat_with(engine)
    with pytest.raises(UsageError):
        chat.ask(message)
    assert chat._state.tokens_read == 0


def test_an_abandoned_answer_does_not_disturb_the_next(engine: Engine) -> None:
    chat = chat_with(engine)
    abandoned = chat.ask(FRANCE)
    shown = next(abandoned)
    answer = say(chat, JAPAN)
    assert list(abandoned) == []
    expect_read(chat, (FRANCE, " " + shown), (JAPAN, " " + answer))


@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_eight_chats_at_once(demo_artifact: Callable[[str], Path], quantization: str) -> None:
    engine = load(demo_artifact(quantization), "cpu")
    questions = [FRANCE, JAPAN] * 4
    expected = {FRANCE: say(chat_with(engine), FRANCE), JAPAN: say(chat_with(engine), JAPAN)}
    answers: dict[int, str] = {}

    def run(number: int) -> None:
        answers[number] = say(chat_with(engine), questions[number])

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(8)] == [expected[q] for q in questions]


# Taking back, and setting


def test_taken_back_is_as_if_never_said(engine: Engine) -> None:
    chat = chat_with(engine)
    say(chat, FRANCE)
    before = chat._state.numpy()
    answer = say(chat, JAPAN)
    assert [(one.message, one.answer) for one in chat.exchanges][1:] == [(JAPAN, answer)]
    assert chat.undo() == JAPAN
    np.testing.assert_array_equal(chat._state.numpy(), before)
    assert (chat.turns, len(chat.exchanges)) == (1, 1)
    assert say(chat, JAPAN) == answer
    assert chat.undo() == JAPAN
    assert chat.undo() == FRANCE
    assert chat.turns == 0
    with pytest.raises(UsageError, match="nothing to take back"):
        chat.undo()


def test_what_was_loaded_cannot_be_taken_back(engine: Engine, tmp_path: Path) -> None:
    chat = chat_with(engine)
    say(chat, FRANCE)
    chat.save(tmp_path / "talk")
    chat.load(tmp_path / "talk")
    assert chat.turns == 1
    with pytest.raises(UsageError, match="none from before it was loaded"):
        chat.undo()


def test_a_message_that_nobody_heard_is_none(engine: Engine) -> None:
    chat = chat_with(engine)
    say(chat, FRANCE)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(chat.ask("x " * 3000, progress=interrupt))
    assert say(chat, JAPAN) == "The capital of Japan is Tokyo."
    assert [one.message for one in chat.exchanges] == [FRANCE, JAPAN]
    assert chat.undo() == JAPAN


def test_settings_hold_from_the_next_message_on(engine: Engine) -> None:
    chat = chat_with(engine)
    whole = say(chat, FRANCE)
    chat.set("max_tokens", 2)
    chat.reset()
    assert whole.startswith(short := say(chat, FRANCE)) and short != whole
    chat.set("temperature", 0.5)
    chat.set("top_k", 3)
    assert (chat.sampling.temperature, chat.sampling.top_k) == (0.5, 3)
    for name, value in (("temperature", -1), ("max_tokens", 0), ("top_k", -1)):
        with pytest.raises(UsageError, match=name):
            chat.set(name, value)


def test_random_numbers_go_on_through_settings(engine: Engine) -> None:
    hot = Sampling(temperature=5, top_p=1)
    other, changed = (Chat(engine, sampling=hot, seed=3, max_tokens=20) for _ in range(2))
    first = say(other, FRANCE), say(other, FRANCE)
    again = say(changed, FRANCE)
    changed.set("top_p", 1)
    assert (again, say(changed, FRANCE)) == first


def test_what_was_said_elsewhere_can_be_read(engine: Engine) -> None:
    here, there = chat_with(engine), chat_with(engine)
    answer = say(here, FRANCE)
    there.read(FRANCE, answer)
    assert there.exchanges == here.exchanges and there.turns == 1
    np.testing.assert_allclose(there._state.numpy(), here._state.numpy(), rtol=0, atol=2e-3)
    assert there.undo() == FRANCE
    with pytest.raises(UsageError, match="empty"):
        there.read(" ", "x")
