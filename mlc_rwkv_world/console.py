"""What the commands print: nothing else in this package writes to a terminal.

Standard output carries results, standard error what a person should know on the way. No character
that could steer the terminal passes; an output that cannot be written is an error that says so,
and a message that cannot be written is lost without one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mlc_rwkv_world.characters import printable, prose
from mlc_rwkv_world.errors import StorageError

# Seconds that work may take before a bar shows how far it is.
_PATIENCE = 2


class OutputError(StorageError):
    """Standard output cannot be written."""


def say(*lines: object, to: TextIO | None = None) -> None:
    """Print each of `lines` as one line on standard output, or on the terminal `to`.

    Raises BrokenPipeError where its reader has gone, OutputError where it cannot be written.
    """
    _put("".join(f"{printable(str(line))}\n" for line in lines), to)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print `value` as JSON on standard output, in ASCII; it raises what `say` does."""
    _put(json.dumps(value, indent=indent, allow_nan=False) + "\n")


def utter(text: str) -> None:
    """Print a piece of what a model says; it raises what `say` does."""
    _put(prose(text))


def coloured() -> bool:
    """Whether a terminal here is to show more than plain text: see https://no-color.org."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("", "dumb")


def label(text: str) -> None:
    """Print who speaks, bold on a terminal; it raises what `say` does."""
    bold = sys.stdout.isatty() and coloured()
    _put(f"\x1b[1m{printable(text)}\x1b[22m" if bold else printable(text))


class Aside:
    """What a model thinks before it answers: dim on a terminal, in brackets on one without colours.

    It is `shown` on terminals alone: elsewhere standard output carries answers and nothing else.
    """

    def __init__(self) -> None:
        self.shown = sys.stdout.isatty()
        self.begun = False
        self._before, self._each, self._after = (
            ("", "\x1b[2m{}\x1b[22m", "\n") if coloured() else ("[thought: ", "{}", "]\n")
        )

    def utter(self, text: str) -> None:
        """Print a piece, where it is shown; it raises what `say` does."""
        if self.shown:
            before = "" if self.begun else self._before
            self.begun = True
            # Each piece for itself: nothing that comes between is dim.
            _put(before + self._each.format(prose(text)))

    def close(self) -> None:
        """End it, and its line, where it was begun."""
        if self.begun:
            self.begun = False
            _put(self._after)


def complain(*lines: str) -> None:
    """Print a message on standard error, each of `lines` as one; where that fails it is lost."""
    with _lost_where_it_fails():
        print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def tell(text: str, file: object) -> None:
    """`complain` where `file` is standard error, else `say`."""
    print_lines = complain if file is sys.stderr else say
    print_lines(*text.splitlines())


def complain_with_traceback() -> None:
    """Print the traceback of the error that is being handled on standard error."""
    complain(*traceback.format_exc().rstrip("\n").split("\n"))


class _Complaints(logging.Handler):
    """What a library logs, as complaints."""

    def emit(self, record: logging.LogRecord) -> None:
        library = record.name.split(".")[0]
        complain(*(f"{library}: {line}" for line in self.format(record).splitlines()))


def pass_on_errors(*libraries: str) -> None:
    """Complain of the errors that `libraries` log, and be silent of all else that they do."""
    for name in libraries:
        logger = logging.getLogger(name)
        logger.handlers = [_Complaints(logging.ERROR)]
        logger.propagate = False


@contextmanager
def speaking_for(library: str) -> Iterator[None]:
    """Say what a library logs, which may quote a server, as `complain` says it."""
    logger = logging.getLogger(library)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Complaints()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class Bar:
    """How far a long piece of work is, on standard error where that is a terminal.

    It appears once the work has taken two seconds, and is gone when it is closed; one that is
    `lasting` appears at once, and stays.
    """

    def __init__(
        self, unit: str = "", what: str = "", *, lasting: bool = False, hidden: bool = False
    ) -> None:
        self._unit = unit
        self._lasting = lasting
        self._hidden = hidden
        self._what = what
        self._bar: Any = None

    def show(self, done: int, total: int, at: str = "") -> None:
        """`done` of `total` units are through, `at` the one that is at hand.

        Those of the first call were through before, and say nothing of the speed.
        """
        if self._hidden:
            return
        with _lost_where_it_fails():
            if self._bar is None:
                if done >= total:
                    return
                self._bar = self._open(done, total)
            if at:
                self._bar.set_postfix_str(printable(at), refresh=False)
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away; the next `show` begins another."""
        if self._bar is not None:
            with _lost_where_it_fails():
                self._bar.close()
        self._bar = None

    def _open(self, done: int, total: int) -> Any:
        # Where nothing takes long it is never imported.
        from tqdm import tqdm

        return tqdm(
            desc=printable(self._what) or None,
            initial=done,
            total=total,
            unit=self._unit,
            unit_scale=total > 9999,
            leave=self._lasting,
            miniters=1,
            disable=None,
            delay=0 if self._lasting else _PATIENCE,
        )


def tqdm_class(what: str, watch: Callable[[int], None], *, hidden: bool = False) -> Any:
    """A class of lasting bars for a library that makes its own of what is like tqdm's.

    `watch` hears of each piece of work before it is done, and may raise to end it.
    """
    from tqdm import tqdm

    class LibraryBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"desc": printable(what), "leave": True, "disable": hidden or None}
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> None:
            watch(int(n or 0))
            with _lost_where_it_fails():
                super().update(n)

        def update_transfer(self, n: float) -> None:
            """What comes over the network counts nothing: Xet sends less than a file's bytes."""

    return LibraryBar


def open_streams() -> None:
    """Let the standard streams be there, and take any text.

    One that was closed leads nowhere: else the next file that is opened took its number, and
    received what others print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # A model may say what the terminal's encoding cannot.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def agreed(question: str) -> bool:
    """Whether a person at the terminal says yes; False where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    with _lost_where_it_fails():
        print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def streams() -> tuple[TextIO, TextIO]:
    """Standard output and standard error, to ask what they are."""
    return sys.stdout, sys.stderr


def silence(stream: TextIO) -> None:
    """Send what is on its way to `stream` nowhere: Python would complain of it when it exits."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _put(text: str, to: TextIO | None = None) -> None:
    stream = to or sys.stdout
    try:
        print(text, end="", file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)
        raise
    except OSError as error:
        silence(stream)
        raise OutputError(
            f"standard output cannot be written: {error.strerror}. Send it to another place."
        ) from error


@contextmanager
def _lost_where_it_fails() -> Iterator[None]:
    """Nobody can be told that standard error cannot be written."""
    try:
        yield
    except OSError:
        silence(sys.stderr)
