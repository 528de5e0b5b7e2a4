"""How a conversation is written, from the template in a model's configuration.

A prompt never ends with a space: " Hello" is one token, and after a space it would be a
wrong one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.conversation import world_conversation
from mlc_rwkv_world.artifact.json_fields import Fields

_MESSAGE = "{user_message}"


@dataclass(frozen=True)
class Template:
    """A conversation's fixed texts.

    `primer` is read once, before the first message; `before` and `after` stand around a
    message; `ending` follows an answer; an answer stops before any of `stop`.
    """

    primer: str
    before: str
    after: str
    ending: str
    stop: tuple[str, ...]

    @classmethod
    def world(cls) -> Template:
        """The World models' own template."""
        return _parse(Fields(world_conversation(), "World template"))

    @classmethod
    def from_config(cls, config: ChatConfig) -> Template:
        """The template of a model, World's where its configuration has none.

        Stock mlc_llm's own `rwkv_world` lacks the blank line after the primer and ends a
        prompt with a space; both are put right.
        """
        if config.conversation is None:
            return cls.world()
        return _parse(Fields(config.conversation, f"{config.path}: conv_template"))

    def prompt(self, message: str) -> str:
        """The text that asks for an answer to `message`, which is cleaned first."""
        return self.before + clean(message) + self.after


def clean(message: str) -> str:
    """`message` without blank lines, which would end the turn, and without space around it."""
    message = message.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\n\s*\n", "\n", message).strip()


def _parse(fields: Fields) -> Template:
    world = world_conversation()
    separators = fields.texts("seps", world["seps"]) or world["seps"]
    after_user, ending = separators[0], separators[-1]
    roles = fields.object("roles", world["roles"])
    user, assistant = roles.text("user"), roles.text("assistant")
    primer = fields.text("system_template", "{system_message}").replace(
        "{system_message}", fields.text("system_message", "")
    )
    if primer and not primer.endswith(ending):
        primer += ending
    message = fields.object("role_templates", {}).text("user", _MESSAGE)
    if _MESSAGE not in message:
        raise fields.error("role_templates", f"texts of which the user's holds {_MESSAGE}")
    before, _, after = message.partition(_MESSAGE)
    # An empty stop string would end every answer before it begins.
    stop = [text for text in fields.texts("stop_str", world["stop_str"]) if text]
    return Template(
        primer=primer,
        before=user + fields.text("role_content_sep", world["role_content_sep"]) + before,
        after=after + after_user + assistant + fields.text("role_empty_sep", ":").rstrip(" "),
        ending=ending,
        stop=tuple(stop),
    )
