"""The World template, ours and stock's, and the cleaning of messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.conversation import conversation as stock_form
from mlc_rwkv_world.artifact.conversation import world_conversation
from mlc_rwkv_world.artifact.template import Template, clean, clean_with_input
from mlc_rwkv_world.artifact.templates import G1, QA, TEMPLATES, WORLD
from mlc_rwkv_world.chat.template import choose, configured, usual_sampling
from mlc_rwkv_world.errors import ArtifactError, UsageError
from mlc_rwkv_world.runtime import Engine, Sampling
from mlc_rwkv_world.tokenizer import WorldTokenizer


def template(folder: Path, conversation: Any, **ours: Any) -> Template:
    content = {
        "rwkv_world": ours,
        "model_type": "rwkv_world",
        "quantization": "q0f32",
        "model_config": {},
        "conv_template": conversation,
    }
    (folder / "mlc-chat-config.json").write_text(json.dumps(content))
    return configured(ChatConfig.read(folder))


def test_prompts_begin_with_the_tokens_that_models_know() -> None:
    encode = WorldTokenizer.default().encode
    user = [24281, 59, 4571, 261, 5585, 41693, 59]
    assert encode(WORLD.prompt("hi")) == user
    assert encode(replace(G1, think="on").prompt("hi")) == [*user, 295, 35762]
    assert encode(G1.prompt("hi")) == [*user, 295, 35762, 63, 11, 754, 35762]


@pytest.mark.parametrize("conversation", [None, "rwkv_world", world_conversation(), {}])
def test_configurations_with_nothing_else_to_say(tmp_path: Path, conversation: Any) -> None:
    found = template(tmp_path, conversation)
    if conversation == {}:
        assert found.primer == ""
        found = replace(
            found, system_template=WORLD.system_template, system_message=WORLD.system_message
        )
    assert found == WORLD


def test_stocks_own_template_is_put_right(tmp_path: Path) -> None:
    stock = world_conversation() | {
        "system_template": "User: hi\n\nAssistant: {system_message}",
        "role_empty_sep": ": ",
    }
    found = template(tmp_path, stock)
    assert found.primer == WORLD.primer
    assert found == replace(WORLD, system_template=stock["system_template"])


def test_another_template_is_followed(tmp_path: Path) -> None:
    other = template(
        tmp_path,
        {
            "system_template": "{system_message}",
            "system_message": "Be brief.",
            "roles": {"user": "Question", "assistant": "Answer"},
            "role_templates": {"user": "<{user_message}>"},
            "seps": ["\n", "\n---\n"],
            "role_content_sep": "= ",
            "role_empty_sep": "=",
            "stop_str": ["\n---", ""],
        },
    )
    assert other.primer == "Be brief.\n---\n"
    assert other.prompt("Why?") == "Question= <Why?>\nAnswer="
    assert other.ending == "\n---\n"
    assert other.stop == ("\n---",)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_configuration_names_a_template(tmp_path: Path, name: str) -> None:
    """Whether stock's form of it is there, or still that of another one, or none."""
    expected = TEMPLATES[name]
    for conversation in (stock_form(expected), stock_form(WORLD), stock_form(QA), None, "qa"):
        assert template(tmp_path, conversation, template=name) == expected


def test_a_mode_and_a_system_text_of_a_configuration(tmp_path: Path) -> None:
    form = stock_form(G1) | {"system_message": "Be brief."}
    found = template(tmp_path, form, template="g1", think="short")
    assert found.think == "short"
    assert found.primer == "System: Be brief.\n\n"
    assert stock_form(found)["system_template"] == "System: {system_message}\n\n"


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"template": "g2"}, "no template 'g2'; there are world, g1, instruction, qa"),
        ({"template": 3}, "'template' is 3 instead of a string"),
        ({"template": "g1", "think": "deep"}, "Thinking is 'deep'; it can be off, short, on"),
        ({"template": "world", "think": "on"}, "world has no thinking; g1 has"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, ours: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        template(tmp_path, None, **ours)
    assert "mlc-chat-config.json" in str(error.value)


def test_choices_go_before_the_configuration(engine: Engine) -> None:
    assert choose(engine) == WORLD
    assert choose(engine, "world") == WORLD
    found = choose(engine, "g1", "on", "Be\n\nbrief.")
    assert (found.name, found.think, found.primer) == ("g1", "on", "System: Be\nbrief.\n\n")
    assert choose(engine, QA) == QA
    for options, message in (
        (("g2",), "There is no template 'g2'"),
        (("world", "on"), "The template world has no thinking"),
        (("g1", "much"), "Thinking is 'much'"),
        ((None, None, "Be brief."), "The template world has no System text; g1 has"),
    ):
        with pytest.raises(UsageError, match=message):
            choose(engine, *options)


def test_another_template_brings_its_sampling(engine: Engine) -> None:
    assert usual_sampling(engine, WORLD) == engine.sampling
    assert usual_sampling(engine, QA) == Sampling(top_p=0.2)
    assert usual_sampling(engine, G1).presence_penalty == 0.5


@pytest.mark.parametrize(
    "conversation",
    [
        {"seps": "\n"},
        {"seps": [1]},
        {"roles": {"user": "User"}},
        {"roles": []},
        {"stop_str": [3]},
        {"role_templates": {"user": "nothing"}},
        {"stop_token_ids": ["0"]},
    ],
)
def test_wrong_templates_are_refused(tmp_path: Path, conversation: Any) -> None:
    with pytest.raises(ArtifactError, match=r"mlc-chat-config\.json: conv_template"):
        template(tmp_path, conversation)


@pytest.mark.parametrize(
    ("message", "cleaned"),
    [
        ("  hi \n", "hi"),
        ("a\r\nb", "a\nb"),
        ("a\r\n\r\nb", "a\nb"),
        ("a\rb", "a\nb"),
        ("a\n\n\n\nb\n\nc", "a\nb\nc"),
        ("a\n \t\nb", "a\nb"),
        ("def f():\n\n    return 1", "def f():\n    return 1"),
        ("你好，\n\n世界", "你好，\n世界"),
        (" \n\n ", ""),
    ],
)
def test_messages_are_cleaned(message: str, cleaned: str) -> None:
    assert clean(message) == cleaned


@pytest.mark.parametrize(
    ("message", "cleaned"),
    [
        ("Sum it up.", "Sum it up."),
        ("Sum\nit up.\n \nOne.\n\n\nTwo.\n", "Sum\nit up.\n\nInput: One.\nTwo."),
        ("\n\nSum it up.\r\n\r\nOne.", "Sum it up.\n\nInput: One."),
        ("", ""),
    ],
)
def test_a_blank_line_parts_an_instruction_from_its_input(message: str, cleaned: str) -> None:
    assert clean_with_input(message) == cleaned
