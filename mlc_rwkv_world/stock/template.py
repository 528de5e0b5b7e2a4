"""The World conversation template, put in place of the host's own of the same name."""

from __future__ import annotations

from types import ModuleType

from mlc_rwkv_world.artifact.conversation import world_conversation


def add_template(conversation_template: ModuleType) -> None:
    """The host's lacks the blank line after the system text and ends a prompt with a space."""
    from mlc_llm.protocol.conversation_protocol import Conversation

    registry = conversation_template.ConvTemplateRegistry
    conversation = Conversation.from_json_dict(world_conversation())
    registry.register_conv_template(conversation, override=True)
