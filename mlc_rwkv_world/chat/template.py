"""How the World models expect a conversation to be written.

    User: hi
    <blank line>
    Assistant: Hi. I am your assistant ...
    <blank line>
    User: {message}
    <blank line>
    Assistant:

A prompt never ends with a space: " Hello" is one token, and a space before it a wrong one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.json_fields import Fields

_SYSTEM = (
    "Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it."
)


@dataclass(frozen=True)
class Template:
    """A conversation's fixed texts.

    `primer` is read once, before the first message; `before` and `after` stand around a
    message; `ending` follows an answer; an answer stops before any of `stop`.
    """

    primer: str = f"User: hi\n\nAssistant: {_SYSTEM}\n\n"
    before: str = "User: "
    after: str = "\n\nAssistant:"
    ending: str = "\n\n"
    stop: tuple[str, ...] = ("\n\n",)

    @classmethod
    def from_config(cls, config: ChatConfig) -> Template:
        """The template of a model, World's where its configuration has none.

        Stock mlc_llm's own `rwkv_world` lacks the blank line after the primer and ends a
        prompt with a space; both are put right.
        """
        if config.conversation is None:
            return cls()
        return _parse(Fields(config.conversation, f"{config.path}: conv_template"))

    def prompt(self, message: str) -> str:
        """The text that asks for an answer to `message`, which is cleaned first."""
        return self.before + clean(message) + self.after


def clean(message: str) -> str:
    """`message` without blank lines, which end a turn, and without space around it."""
    message = message.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\n\s*\n", "\n", message).strip()


def _parse(fields: Fields) -> Template:
    separators = fields.items("seps", str, ["\n\n"]) or ["\n\n"]
    after_user, ending = separators[0], separators[-1]
    roles = fields.object("roles", {})
    user, assistant = roles.text("user", "User"), roles.text("assistant", "Assistant")
    system = fields.text("system_template", "{system_message}").replace(
        "{system_message}", fields.text("system_message", "")
    )
    if system and not system.endswith(ending):
        system += ending
    wording = fields.object("role_templates", {}).text("user", "{user_message}")
    before, placeholder, after = wording.partition("{user_message}")
    if not placeholder:
        raise fields.error("role_templates", "a text for the user with {user_message} in it")
    return Template(
        primer=system,
        before=user + fields.text("role_content_sep", ": ") + before,
        after=after + after_user + assistant + fields.text("role_empty_sep", ":").rstrip(" "),
        ending=ending,
        stop=tuple(text for text in fields.items("stop_str", str, ["\n\n"]) if text),
    )
