"""Thoughts and answers, parted; and conversations in which a model thinks."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.artifact.stopping import Thought
from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.chat.thoughts import Parting, Piece
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime import Engine, Sampler

WHOLE, MARK = Thought(">", "</think>"), Thought(">")
THINKING = ">\nOne step.\n\nAnother.\n</think>\n\nIt is so.\n\n"


@pytest.mark.parametrize(
    ("thought", "texts", "expected"),
    [
        (None, [" Yes", " no "], [("Yes", False), (" no ", False)]),
        (None, ["> </think>"], [("> </think>", False)]),
        (WHOLE, [">", "\n", "I", " see.\n", "\nSo", "\n</think>", "\n\n", "Yes"],
         [("I", True), (" see.", True), ("\n\nSo", True), ("Yes", False)]),
        (WHOLE, [">\n> quoted", "</think> Yes"], [("> quoted", True), ("Yes", False)]),
        (WHOLE, ["no mark</think>Yes"], [("no mark", True), ("Yes", False)]),
        (WHOLE, [">\n", "</think>", "\nYes</think>"], [("Yes</think>", False)]),
        (WHOLE, [">\n", "cut off "], [("cut off", True)]),
        (MARK, [">", "\n\nYes > no"], [("Yes > no", False)]),
        (MARK, [" Yes", ">"], [("Yes", False), (">", False)]),
    ],
)  # fmt: skip
def test_parting(
    thought: Thought | None, texts: list[str], expected: list[tuple[str, bool]]
) -> None:
    parting = Parting(thought)
    found = list(chain.from_iterable(parting.part(text) for text in texts))
    assert found == [Piece(*one) for one in expected]


def scripted(monkeypatch: pytest.MonkeyPatch, engine: Engine, *texts: str) -> None:
    """Let every sampler choose the tokens of `texts`, one text after another."""
    chosen = iter(list(chain.from_iterable(map(engine.tokenizer.encode, texts))))
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))


def expect_read(chat: Chat, *texts: str) -> None:
    """The chat's state is as if these had been read, each by itself."""
    state = chat.engine.new_state()
    for text in texts:
        chat.engine.prefill(chat.engine.encode(text), state)
    np.testing.assert_allclose(chat._state.numpy(), state.numpy(), rtol=0, atol=2e-3)


def thinking(engine: Engine, **options: Any) -> Chat:
    return Chat(engine, **{"template": "g1", "think": "on", **options})


def test_a_thought_is_no_part_of_the_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, engine, THINKING)
    chat = thinking(engine)
    assert "".join(chat.ask("Is it?")) == "It is so."
    assert chat.thought == "One step.\n\nAnother."
    expect_read(chat, "User: Is it?\n\nAssistant: <think", THINKING)


def test_events_tell_thought_from_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, engine, THINKING)
    pieces = list(thinking(engine).events("Is it?"))
    kinds = [piece.is_thought for piece in pieces]
    assert kinds == sorted(kinds, reverse=True) and len(set(kinds)) == 2
    assert "".join(piece.text for piece in pieces if piece.is_thought) == "One step.\n\nAnother."


def test_each_mode_asks_in_its_own_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ">\nIt is so.\n\n"
    scripted(monkeypatch, engine, answer, THINKING)
    chat = thinking(engine, think=None, system="Be brief.")
    assert "".join(chat.ask("Is it?")) == "It is so."
    assert chat.thought == ""
    chat.think("short")
    assert "".join(chat.ask("And now?")) == "It is so."
    assert chat.thought
    expect_read(
        chat,
        "System: Be brief.\n\n",
        "User: Is it?\n\nAssistant: <think>\n</think" + answer,
        "User: And now? (think a bit)\n\nAssistant: <think" + THINKING,
    )
    chat.reset()
    assert chat.thought == ""


@pytest.mark.parametrize(
    ("tokens", "rest"), [(0, ">\n</think>"), (1, "\n</think>"), (4, "\n</think>")]
)
def test_a_thought_that_is_cut_off_is_ended(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: int, rest: str
) -> None:
    """The next message does not stand inside it."""
    ids = engine.tokenizer.encode(THINKING)
    given = engine.tokenizer.decode_bytes(ids[:tokens]).decode()
    chosen = iter([*ids[:tokens], *([0] if tokens == 0 else ids[tokens:])])
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))
    chat = thinking(engine, max_tokens=tokens or None)
    assert "".join(chat.ask("Is it?")) == ""
    expect_read(chat, "User: Is it?\n\nAssistant: <think", given.rstrip("\n") + rest + "\n\n")


def test_the_mode_of_an_unfinished_turn_ends_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, engine, THINKING)
    chat = thinking(engine)
    asked = chat.events("Is it?")
    assert "".join(next(asked).text for _ in range(2)) == "One step"
    chat.think("off")
    scripted(monkeypatch, engine, ">\nNo.\n\n")
    assert "".join(chat.ask("And now?")) == "No."
    assert list(asked) == []
    expect_read(
        chat,
        "User: Is it?\n\nAssistant: <think",
        ">\nOne step\n</think>\n\n",
        "User: And now?\n\nAssistant: <think>\n</think",
        ">\nNo.\n\n",
    )


def test_a_model_that_does_not_think_says_so(engine: Engine) -> None:
    chat = Chat(engine)
    with pytest.raises(UsageError, match="The template world has no thinking; g1 has"):
        chat.think("on")
    with pytest.raises(UsageError, match="no thinking"):
        Chat(engine, think="on")
    chat.think("off")


def test_a_conversation_with_thoughts_is_saved_and_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted(monkeypatch, engine, THINKING)
    chat = thinking(engine)
    "".join(chat.ask("Is it?"))
    chat.save(tmp_path / "talk")
    other = thinking(engine)
    other.load(tmp_path / "talk")
    assert (other.turns, other.thought) == (1, "")
    np.testing.assert_array_equal(other._state.numpy(), chat._state.numpy())
