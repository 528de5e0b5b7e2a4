"""Texts in a configuration that no text can be, and names that no file can have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.conversation import world_conversation
from mlc_rwkv_world.artifact.templates import WORLD
from mlc_rwkv_world.chat.template import configured
from mlc_rwkv_world.errors import ArtifactError

HALF = "\ud800"


def edit(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["conv_template"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        edit("stop_str", [HALF]),
        edit("seps", ["\n\n", f"a{HALF}b"]),
        edit("system_message", HALF),
        edit("system_template", f"{HALF}{{system_message}}"),
        edit("role_content_sep", HALF),
        edit("roles", {"user": "\udc00", "assistant": "A"}),
        edit("role_templates", {"user": f"{HALF}{{user_message}}"}),
        lambda config: config.update(rwkv_world={"template": HALF}),
        lambda config: config.update(rwkv_world={"template": "a\x1b[31m"}),
        lambda config: config.update(rwkv_world={"think": "on\n"}),
        lambda config: config.update(tokenizer_files=["a\0b"]),
        lambda config: config.update(tokenizer_files=[f"a{HALF}b"]),
        lambda config: config.update(tokenizer_files=["a" * 5000]),
        lambda config: config.update(tokenizer_files=["a\x1b[31m"]),
        lambda config: config.update(quantization=HALF),
        lambda config: config.update(model_type=HALF),
    ],
)
def test_odd_strings(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model_type": "rwkv_world",
        "quantization": "q0f32",
        "model_config": {},
        "conv_template": world_conversation(),
    }
    path = tmp_path / "mlc-chat-config.json"
    path.write_text(json.dumps(config))
    assert configured(ChatConfig.read(tmp_path)) == WORLD
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as error:
        configured(ChatConfig.read(tmp_path))
    message = str(error.value)
    assert str(path) in message
    assert len(message) < 500
    assert message.isprintable()
