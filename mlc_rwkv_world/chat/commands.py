"""The commands of a chat: lines whose first word is a slash and a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mlc_rwkv_world.artifact.templates import no_thinking
from mlc_rwkv_world.chat.session import Chat
from mlc_rwkv_world.errors import UsageError

HELP = """\
/help            this list
/exit            end the program
/stats           speed of reading and answering since the conversation began
/reset           begin a new conversation
/think [HOW]     how much to think: off, short or on
/reload [MODEL]  load the model again, or another one
/save FILE       write the conversation to a file
/load FILE       go on with a conversation from a file
//TEXT           say /TEXT to the model, which no command is
Ctrl-C stops an answer; Ctrl-D ends the program."""

# A path (/usr/bin), a comment (/* ... */) and a lone slash are no attempts at a command.
_COMMAND = re.compile(r"/([^\W\d_][^\s/]*)(?:[^\S\n]+(.*))?")


class Line(NamedTuple):
    """What a person typed: a text for the model, or else a command with what stands after it."""

    text: str | None
    command: str = ""
    argument: str = ""


def read(line: str) -> Line:
    """Tell a command from a text. Two slashes at its start make a text that begins with one."""
    stripped = line.strip()
    if stripped.startswith("//"):
        return Line(stripped[1:])
    match = _COMMAND.fullmatch(stripped)
    return Line(line) if match is None else Line(None, match[1], (match[2] or "").strip())


class Commands:
    """Carries out commands on `chat`, which `/reload` replaces."""

    def __init__(self, chat: Chat, reload: Callable[[str | None], Chat]) -> None:
        """`reload` opens a chat with the model that it is given, or the first one again."""
        self.chat = chat
        self.ended = False
        self._reload = reload
        self._with_argument = {
            "save": self._save,
            "load": self._load,
            "reload": self._load_model,
            "think": self._think,
        }
        self._alone = {
            "help": lambda: HELP,
            "stats": lambda: str(self.chat.speed),
            "reset": self._reset,
            "exit": self._exit,
            "quit": self._exit,
        }

    def run(self, name: str, argument: str) -> str:
        """Carry out the command `name` and give what to print.

        Raises UsageError for a command that does not exist, or lacks its argument or has none, and
        whatever the command raises, an OSError among it.
        """
        if name in self._with_argument:
            return self._with_argument[name](_unquoted(argument))
        if name not in self._alone:
            raise self._unknown(name)
        if argument:
            raise UsageError(f"/{name} stands alone. To say this to the model, write //{name} ...")
        return self._alone[name]()

    def _unknown(self, name: str) -> UsageError:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), [*self._with_argument, *self._alone], n=1)
        suggestion = f" The nearest is /{near[0]}." if near else ""
        return UsageError(
            f"There is no command /{name}.{suggestion} /help lists them; to say this to the "
            "model, begin with two slashes."
        )

    def _exit(self) -> str:
        self.ended = True
        return ""

    def _reset(self) -> str:
        self.chat.reset()
        return "A new conversation."

    def _think(self, how: str) -> str:
        if not self.chat.template.thinks:
            raise no_thinking(self.chat.template)
        if how:
            self.chat.think(how)
        template = self.chat.template
        return f"Thinking is {template.think}. It can be {', '.join(template.modes)}: /think HOW."

    def _load_model(self, model: str) -> str:
        self.chat = self._reload(model or None)
        return f"Loaded {self.chat.engine.folder}. A new conversation."

    def _save(self, path: str) -> str:
        self.chat.save(_named("save", path))
        return f"Saved to {path}."

    def _load(self, path: str) -> str:
        self.chat.load(_named("load", path))
        return f"Loaded {path}: {self.chat.turns} turns."


def _unquoted(argument: str) -> str:
    """A name as it was given, or without the quotes around all of it."""
    quoted = re.fullmatch(r"""(["'])(.*)\1""", argument)
    return argument if quoted is None else quoted[2]


def _named(command: str, path: str) -> str:
    if not path:
        raise UsageError(f"/{command} needs the name of a file: /{command} FILE")
    return path
