"""The commands of a chat: lines whose first word is a slash and a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mlc_rwkv_world.artifact.sampling_options import SAMPLING
from mlc_rwkv_world.artifact.templates import no_thinking
from mlc_rwkv_world.chat import settings
from mlc_rwkv_world.chat.session import Chat
from mlc_rwkv_world.errors import UsageError

HELP = """\
/help            this list
/exit            end the program
/stats           speed of reading and answering since the conversation began
/reset           begin a new conversation
/retry           answer the last message once more
/undo            take the last message and its answer back
/history         what was said
/system [TEXT]   begin a new conversation with this System text
/set [NAME=X]    set temperature, top_p, top_k, min_p, max_tokens, ...
/think [HOW]     how much to think: off, short or on
/reload [MODEL]  load the model again, or another one
/save FILE       write the conversation to a file
/load FILE       go on with a conversation from a file
//TEXT           say /TEXT to the model, which no command is
Esc Enter or Alt-Enter begins a new line, Tab completes, Ctrl-C stops an answer, Ctrl-D ends."""

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
        # A message that a command wants answered now.
        self.asked: str | None = None
        self._reload = reload
        self._with_argument = {
            "save": self._save,
            "load": self._load,
            "reload": self._load_model,
            "think": self._think,
            "system": self._system,
            "set": self._set,
        }
        self._alone = {
            "help": lambda: HELP,
            "stats": lambda: str(self.chat.speed),
            "reset": self._reset,
            "retry": self._retry,
            "undo": self._undo,
            "history": self._history,
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

    @property
    def names(self) -> list[str]:
        """Every command, without its slash."""
        return [*self._with_argument, *self._alone]

    def _unknown(self, name: str) -> UsageError:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), self.names, n=1)
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

    def _system(self, text: str) -> str:
        self.chat.system(text)
        return "A new conversation" + (", with this System text." if text else ".")

    def _set(self, text: str) -> str:
        if text:
            self.chat.set(*settings.read(text))
        values = {name: getattr(self.chat.sampling, name) for name in SAMPLING}
        values[settings.MAX_TOKENS] = self.chat.max_tokens
        return ", ".join(f"{name}={value}" for name, value in values.items())

    def _retry(self) -> str:
        self.asked = self.chat.undo()
        return ""

    def _undo(self) -> str:
        message = self.chat.undo()
        return f"Taken back: {message}"

    def _history(self) -> str:
        template, said = self.chat.template, self.chat.exchanges
        earlier = self.chat.turns - len(said)
        lines = [f"({earlier} earlier turns were loaded)"] if earlier else []
        for one in said:
            lines += [f"{template.user}: {one.message}", f"{template.assistant}: {one.answer}"]
        return "\n".join(lines) or "Nothing was said yet."

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
