"""What a conversation template is: how a conversation is written, and when an answer is over.

A prompt never ends with a space: " Hello" is one token, and after a space it would be a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlc_rwkv_world.artifact import config as defaults
from mlc_rwkv_world.artifact.stopping import StopRule, Thought

USER_MESSAGE = "{user_message}"
SYSTEM_MESSAGE = "{system_message}"
# The mode of thinking that every template has.
OFF = "off"


def clean(message: str) -> str:
    """`message` without blank lines, which would end the turn, and without space around it.

    So models of the World and of the G1 series were trained: the card of rwkv-7-world, and
    RWKV-LM/RWKV-v7/RWKV7-G1x-templates.txt, ask for it. Indentation stays.
    """
    message = message.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\n\s*\n", "\n", message).strip()


def clean_with_input(message: str) -> str:
    """An instruction and, behind the first blank line of `message`, the input that it is for."""
    text = message.replace("\r\n", "\n").replace("\r", "\n").strip()
    instruction, *rest = re.split(r"\n\s*\n", text, maxsplit=1)
    return "\n\nInput: ".join(filter(None, map(clean, (instruction, *rest))))


@dataclass(frozen=True)
class Mode:
    """One way to think: what stands behind a message, and what a prompt ends with."""

    request: str = ""
    prompt: str = ""
    thought: Thought | None = None


@dataclass(frozen=True)
class SamplingDefaults:
    """The sampling that models of a template are used with."""

    temperature: float = defaults.TEMPERATURE
    top_p: float = defaults.TOP_P
    presence_penalty: float = defaults.PRESENCE_PENALTY
    frequency_penalty: float = defaults.FREQUENCY_PENALTY
    repetition_penalty: float = defaults.REPETITION_PENALTY


@dataclass(frozen=True)
class Template:
    """How a conversation is written.

    A message is written `user`, `content_sep` and `message`, in which it stands for
    {user_message}. `between` follows it; `assistant` and `empty_sep` ask for the answer, which
    `ending` follows. `primer` stands before the first message. Of the `modes` of thinking, by name,
    `think` is used. `stop` and `stop_ids` end an answer, strings not before its thought is over.
    """

    name: str
    user: str = "User"
    assistant: str = "Assistant"
    content_sep: str = ": "
    empty_sep: str = ":"
    message: str = USER_MESSAGE
    between: str = "\n\n"
    ending: str = "\n\n"
    system_template: str = SYSTEM_MESSAGE
    system_message: str = ""
    takes_system: bool = False
    cleaned: Callable[[str], str] = clean
    stop: tuple[str, ...] = ("\n\n",)
    stop_ids: frozenset[int] = frozenset({0})
    modes: Mapping[str, Mode] = field(default_factory=lambda: {OFF: Mode()})
    think: str = OFF
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def stock_name(self) -> str:
        """How stock engines call it."""
        return f"rwkv_{self.name}"

    @property
    def thinks(self) -> bool:
        """Whether there is another mode than none."""
        return len(self.modes) > 1

    @property
    def primer(self) -> str:
        """What is read before the first message."""
        wants_text = self.takes_system and SYSTEM_MESSAGE in self.system_template
        if wants_text and not self.system_message:
            return ""
        text = self.system_template.replace(SYSTEM_MESSAGE, self.system_message)
        return text if not text or text.endswith(self.ending) else text + self.ending

    def prompt(self, message: str) -> str:
        """The text that asks for an answer to `message`, which is cleaned first."""
        return self.asked(message) + self.invitation

    def asked(self, message: str) -> str:
        """`message`, cleaned, as a user's turn with what follows it."""
        mode = self.modes[self.think]
        before, _, after = self.message.partition(USER_MESSAGE)
        return (
            f"{self.user}{self.content_sep}{before}{self.cleaned(message)}{mode.request}{after}"
            f"{self.between}"
        )

    @property
    def invitation(self) -> str:
        """What asks for an answer, behind a user's turn."""
        return f"{self.assistant}{self.empty_sep}{self.modes[self.think].prompt}"

    @property
    def rule(self) -> StopRule:
        """When the answer to a prompt is over."""
        return StopRule(self.stop, self.stop_ids, self.modes[self.think].thought)

    def __str__(self) -> str:
        """The template and its mode, for people."""
        return f"{self.name}, thinking {self.think}" if self.thinks else self.name
