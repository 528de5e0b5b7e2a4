"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable

from mlc_rwkv_world.chat.session import Chat
from mlc_rwkv_world.errors import UsageError

HELP = """\
/help            this list
/exit            end the program
/stats           speed of reading and answering since the conversation began
/reset           begin a new conversation
/reload [MODEL]  load the model again, or another one
/save FILE       write the conversation to a file
/load FILE       go on with a conversation from a file
Ctrl-C stops an answer; Ctrl-D ends the program."""


class Commands:
    """Carries out commands on `chat`, which `/reload` replaces."""

    def __init__(self, chat: Chat, reload: Callable[[str | None], Chat]) -> None:
        """`reload` opens a chat with the model that it is given, or the first one again."""
        self.chat = chat
        self.ended = False
        self._reload = reload

    def run(self, line: str) -> str | None:
        """Carry out `line` and give what to print; None where it is no command.

        Raises UsageError for a command that does not exist or lacks its argument, and
        whatever the command raises, an OSError among it.
        """
        match = re.fullmatch(r"/([a-z]+)(?:\s+(.*))?", line.strip())
        if match is None:
            return None
        name, argument = match[1], (match[2] or "").strip()
        if name == "help":
            return HELP
        if name in ("exit", "quit"):
            self.ended = True
            return ""
        if name == "stats":
            return str(self.chat.speed)
        if name == "reset":
            self.chat.reset()
            return "A new conversation."
        if name == "reload":
            self.chat = self._reload(argument or None)
            return f"Loaded {self.chat.engine.folder}. A new conversation."
        if name == "save":
            self.chat.save(_file(name, argument))
            return f"Saved to {argument}."
        if name == "load":
            self.chat.load(_file(name, argument))
            return f"Loaded {argument}: {self.chat.turns} turns."
        raise UsageError(f"There is no command /{name}. /help lists them.")


def _file(command: str, argument: str) -> str:
    if not argument:
        raise UsageError(f"/{command} needs the name of a file: /{command} FILE")
    return argument
