"""The World template, ours and stock's, and the cleaning of messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.conversation import OPENING_ANSWER, world_conversation
from mlc_rwkv_world.chat.template import Template, clean
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.tokenizer import WorldTokenizer


def template(folder: Path, conversation: Any) -> Template:
    content = {
        "model_type": "rwkv_world",
        "quantization": "q0f32",
        "model_config": {},
        "conv_template": conversation,
    }
    (folder / "mlc-chat-config.json").write_text(json.dumps(content))
    return Template.from_config(ChatConfig.read(folder))


def test_world_template() -> None:
    world = Template.world()
    assert world.primer == f"User: hi\n\nAssistant: {OPENING_ANSWER}\n\n"
    assert world.prompt("Hello") == "User: Hello\n\nAssistant:"
    assert world.ending == "\n\n"
    assert world.stop == ("\n\n",)
    ids = WorldTokenizer.default().encode(world.prompt("hi"))
    assert ids == [24281, 59, 4571, 261, 5585, 41693, 59]


@pytest.mark.parametrize("conversation", [None, "rwkv_world", world_conversation(), {}])
def test_configurations_with_nothing_else_to_say(tmp_path: Path, conversation: Any) -> None:
    expected = Template.world()
    if conversation == {}:
        expected = dataclasses.replace(expected, primer="")
    assert template(tmp_path, conversation) == expected


def test_stocks_own_template_is_put_right(tmp_path: Path) -> None:
    stock = world_conversation() | {
        "system_template": "User: hi\n\nAssistant: {system_message}",
        "role_empty_sep": ": ",
    }
    assert template(tmp_path, stock) == Template.world()


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


@pytest.mark.parametrize(
    "conversation",
    [
        {"seps": "\n"},
        {"seps": [1]},
        {"roles": {"user": "User"}},
        {"roles": []},
        {"stop_str": [3]},
        {"role_templates": {"user": "nothing"}},
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
