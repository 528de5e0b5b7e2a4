"""`mlc-chat-config.json` as it is written comes back, template, thinking and sampling."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.conversation import conversation
from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import G1, QA, TEMPLATES
from mlc_rwkv_world.chat.template import configured
from mlc_rwkv_world.convert.chat_config import write_chat_config
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.runtime import Sampling
from mlc_rwkv_world.storage import format_named

CONFIG = ModelConfig(64, 256, 2, 65536)
SYSTEM = replace(G1, system_message="Be brief.")


@pytest.mark.parametrize("template", [*TEMPLATES.values(), replace(G1, think="short"), SYSTEM])
def test_templates_come_back(tmp_path: Path, template: Template) -> None:
    write_chat_config(tmp_path, CONFIG, format_named("q0f32"), template=template)
    found = ChatConfig.read(tmp_path)
    assert configured(found) == template
    assert found.think == (template.think if template.thinks else None)
    assert Sampling.from_config(found) == Sampling(**asdict(template.sampling))


def test_a_conversation_of_stocks_is_all_that_is_said(tmp_path: Path) -> None:
    write_chat_config(tmp_path, CONFIG, format_named("q0f32"), conversation(QA))
    assert "rwkv_world" not in json.loads((tmp_path / "mlc-chat-config.json").read_text())
    assert configured(ChatConfig.read(tmp_path)) == QA
