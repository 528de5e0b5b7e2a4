"""Our conversation templates in the host's registry; World's in place of the host's own."""

from __future__ import annotations

from types import ModuleType

from mlc_rwkv_world.artifact.conversation import conversation
from mlc_rwkv_world.artifact.templates import TEMPLATES, WORLD
from mlc_rwkv_world.stock.defects import present
from mlc_rwkv_world.stock.host import host_version


def add_templates(conversation_template: ModuleType) -> None:
    """The host's World lacks the blank line after the system text and ends a prompt with a space.

    It stays where a version of the host has it right. The others are the host's to be asked for.
    """
    from mlc_llm.protocol.conversation_protocol import Conversation

    registry = conversation_template.ConvTemplateRegistry
    for template in TEMPLATES.values():
        if template is not WORLD or present("template", host_version()):
            form = Conversation.from_json_dict(conversation(template))
            registry.register_conv_template(form, override=True)
