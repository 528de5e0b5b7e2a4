"""The person at the terminal, wherever the results go."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlc_rwkv_world import console
from mlc_rwkv_world.characters import printable
from mlc_rwkv_world.chat import settings
from mlc_rwkv_world.cli.history import open_history

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from mlc_rwkv_world.chat.commands import Commands

_TERMINAL = Path("/dev/tty")
_WITH_FILE = ("save", "load", "reload")


class Person:
    """Types lines, which can be edited, and reads what is told on the same terminal.

    Enter sends; Esc Enter begins a new line, and a paste of several lines comes as one message. Tab
    completes `commands` and what follows them.
    """

    def __init__(self, stream: TextIO, commands: Commands, *, sees_results: bool) -> None:
        """`stream` is the terminal; `sees_results` is whether standard output goes there too."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output.defaults import create_output

        self.sees_results = sees_results
        self._stream = stream
        self._session: PromptSession[str] = PromptSession(
            output=create_output(stdout=stream),
            history=open_history(),
            completer=_completer(commands),
            complete_while_typing=False,
            key_bindings=_keys(),
        )

    def ask(self, prompt: str) -> str | None:
        """A line; None at the end of input."""
        style = "bold" if console.coloured() else ""
        try:
            return self._session.prompt([(style, prompt)])
        except EOFError:
            return None

    def tell(self, *lines: str) -> None:
        """Show lines to this person, and to nobody who reads the results."""
        console.say(*lines, to=self._stream)


def find_person(commands: Commands) -> Person | None:
    """Whoever types at standard input, if that is a terminal that can be written to."""
    if not sys.stdin.isatty():
        return None
    for stream in console.streams():
        if stream.isatty():
            return Person(stream, commands, sees_results=stream is console.streams()[0])
    try:
        return Person(_TERMINAL.open("w", encoding="utf-8"), commands, sees_results=False)
    except OSError:
        return None


def _keys() -> KeyBindings:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        # The one completion comes at once: what is typed next would else overtake it.
        buffer = event.current_buffer
        if buffer.complete_state is not None:
            buffer.complete_next()
            return
        asked = CompleteEvent(completion_requested=True)
        found = list(buffer.completer.get_completions(buffer.document, asked))
        if len(found) == 1:
            buffer.apply_completion(found[0])
        else:
            buffer.start_completion(insert_common_part=True)

    # A terminal sends Alt-Enter as Esc and Enter.
    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(commands: Commands) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    files = PathCompleter(expanduser=True)

    class Line(Completer):
        """Commands, and behind one what it takes."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            name, space, argument = text[1:].partition(" ")
            if not space:
                yield from _of(name, commands.names)
            elif name == "set":
                yield from _of(argument, [f"{setting}=" for setting in settings.NAMES])
            elif name == "think":
                yield from _of(argument, commands.chat.template.modes)
            elif name in _WITH_FILE:
                for found in files.get_completions(Document(argument), complete_event):
                    # A name could steer the terminal.
                    if printable(found.text) == found.text:
                        yield found

    def _of(begun: str, words: Iterable[str]) -> Iterator[Completion]:
        for word in words:
            if word.startswith(begun):
                yield Completion(word, start_position=-len(begun))

    return Line()
