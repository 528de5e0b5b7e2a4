"""The person at the terminal, wherever the results go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlc_rwkv_world import console

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_TERMINAL = Path("/dev/tty")


class Person:
    """Types lines, which can be edited, and reads what is told on the same terminal.

    A paste of several lines comes as one message.
    """

    def __init__(self, stream: TextIO, *, sees_results: bool) -> None:
        """`stream` is the terminal; `sees_results` is whether standard output goes there too."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output.defaults import create_output

        self.sees_results = sees_results
        self._stream = stream
        self._session: PromptSession[str] = PromptSession(output=create_output(stdout=stream))

    def ask(self, prompt: str) -> str | None:
        """A line; None at the end of input."""
        try:
            return self._session.prompt(prompt)
        except EOFError:
            return None

    def tell(self, *lines: str) -> None:
        """Show lines to this person, and to nobody who reads the results."""
        console.say(*lines, to=self._stream)


def find_person() -> Person | None:
    """Whoever types at standard input, if that is a terminal that can be written to."""
    if not sys.stdin.isatty():
        return None
    for stream in console.streams():
        if stream.isatty():
            return Person(stream, sees_results=stream is console.streams()[0])
    try:
        return Person(_TERMINAL.open("w", encoding="utf-8"), sees_results=False)
    except OSError:
        return None
