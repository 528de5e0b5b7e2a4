"""Messages become the ids that a conversation in a terminal would have read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mlc_rwkv_world.artifact.stopping import StopRule
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import G1, INSTRUCTION, QA, WORLD, with_system, with_thinking
from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime import Engine
from mlc_rwkv_world.runtime.sampler import Sampling
from mlc_rwkv_world.serving.conversation import Prompt, Turn, encode, rule, write

pytestmark = pytest.mark.slow
GREEDY = Sampling(temperature=0)
FRANCE, SPAIN = "What is the capital of France?", "What is the capital of Spain?"


class Notes:
    """What an engine reads, in its order."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[int] = []
        self._engine = engine
        prefill, decode = engine.prefill, engine.decode

        def noting_prefill(ids, *more):  # type: ignore[no-untyped-def]
            self.ids += map(int, ids)
            return prefill(ids, *more)

        def noting_decode(token, state):  # type: ignore[no-untyped-def]
            self.ids.append(int(token))
            return decode(token, state)

        monkeypatch.setattr(engine, "prefill", noting_prefill)
        monkeypatch.setattr(engine, "decode", noting_decode)


def ids_of(engine: Engine, turns: list[Turn], template: Template, **more: bool) -> list[int]:
    ids: list[int] = encode(engine, write(turns, template, **more)).ids.tolist()
    return ids


@pytest.fixture(params=["world", "g1 off", "g1 on", "system"])
def talk(
    request: pytest.FixtureRequest, engine: Engine, thinker: Engine
) -> Iterator[tuple[Engine, Template, list[Turn]]]:
    """An engine, a template for it, and system turns."""
    system: list[Turn] = []
    if request.param == "world":
        yield engine, WORLD, system
        return
    template = with_thinking(G1, "on" if request.param == "g1 on" else "off")
    if request.param == "system":
        template = with_system(template, "Be brief.")
        system = [Turn("system", "Be brief.")]
    yield thinker, template, system


def test_it_reads_what_a_chat_reads(
    talk: tuple[Engine, Template, list[Turn]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, template, system = talk
    notes = Notes(engine, monkeypatch)
    chat = Chat(engine, template=template, sampling=GREEDY)
    turns = list(system)
    for question in (FRANCE, SPAIN):
        turns.append(Turn("user", question))
        answer = "".join(chat.ask(question))
        bare = replace(template, system_message="") if system else template
        wanted = ids_of(engine, turns, bare)
        assert notes.ids[: len(wanted)] == wanted
        turns.append(Turn("assistant", answer, chat.thought))


def test_turns_end_where_the_marks_are(engine: Engine) -> None:
    turns = [Turn("user", "One"), Turn("assistant", "Two"), Turn("user", "Three")]
    prompt: Prompt = encode(engine, write(turns, WORLD))
    decode = engine.tokenizer.decode
    places = [0, *prompt.marks, len(prompt.ids)]
    parts = [decode(prompt.ids[a:b]) for a, b in pairwise(places)]
    assert parts == [
        WORLD.primer,
        "User: One\n\nAssistant:",
        " Two\n\n",
        "User: Three\n\nAssistant:",
    ]
    assert prompt.ids.dtype == np.int32


def written(turns: list[Turn], template: Template, **more: bool) -> str:
    return "".join(write(turns, template, **more))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (WORLD, "User: hi\n\nAssistant: Be brief.\n\nUser: Hi\n\nAssistant:"),
        (with_thinking(G1, "on"), "System: Be brief.\n\nUser: Hi\n\nAssistant: <think"),
        (QA, "Be brief.\n\nQ: Hi\n\nA:"),
        (INSTRUCTION, "Be brief.\n\nInstruction: Hi\n\nResponse:"),
    ],
)
def test_every_template_has_a_place_for_a_system_text(template: Template, expected: str) -> None:
    for role in ("system", "developer"):
        assert written([Turn(role, " Be brief.\n"), Turn("user", "Hi")], template) == expected


def test_a_later_system_text_stands_where_it_is() -> None:
    turns = [Turn("user", "Hi"), Turn("system", "Now shout."), Turn("user", "Ho")]
    thinking = with_thinking(G1, "on")
    assert written(turns, thinking).endswith(
        "User: Hi\n\nSystem: Now shout.\n\nUser: Ho\n\nAssistant: <think"
    )
    assert written(turns, QA) == "Q: Hi\n\nNow shout.\nQ: Ho\n\nA:"


def test_the_last_message_of_an_assistant_is_gone_on_with() -> None:
    turns = [Turn("user", "Count."), Turn("assistant", "One, two, ")]
    assert written(turns, QA) == "Q: Count.\n\nA: One, two,"
    assert written(turns, QA, asks=False) == "Q: Count.\n\nA: One, two,\n\n"
    assert written(turns, G1).endswith("Assistant: <think>\n</think>\nOne, two,")
    assert rule(G1, turns).thought is None and rule(G1, turns[:1]).thought is not None
    assert written([Turn("user", "Count."), Turn("assistant", "")], QA) == "Q: Count.\n\nA:"


def test_a_thought_is_written_as_models_write_it() -> None:
    turns = [Turn("user", "Hi"), Turn("assistant", "Ho", "Hm."), Turn("user", "Ha")]
    for think in ("off", "on"):
        text = written(turns, with_thinking(G1, think))
        assert "Assistant: <think>\nHm.\n</think>\nHo\n\nUser: Ha" in text
    # A template that has no thoughts has no words for them.
    assert "Hm." not in written(turns, WORLD)


def test_what_a_grammar_guides_follows_no_thought() -> None:
    turns = [Turn("user", "Hi")]
    assert written(turns, G1, guided=True).endswith("Assistant: <think>\n</think>\n")
    assert written(turns, QA, guided=True).endswith("A:")
    assert rule(G1, turns, guided=True) == StopRule((), G1.stop_ids)


def test_what_cannot_be_written_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="role 'robot'"):
        written([Turn("robot", "Hi")], WORLD)
    with pytest.raises(UsageError, match="empty"):
        encode(engine, write([Turn("assistant", "")], QA, begins=False, asks=False) and iter([""]))
