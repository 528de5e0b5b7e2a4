"""What a command leaves behind when it ends: one clear message and an exit status."""

from __future__ import annotations

import argparse
import errno
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from mlc_rwkv_world import __version__, console
from mlc_rwkv_world.artifact.storage import is_storage_error
from mlc_rwkv_world.errors import (
    NotFoundError,
    OutOfMemoryError,
    RwkvWorldError,
    StorageError,
    is_out_of_memory,
    out_of_memory,
)

INTERRUPTED = 128 + signal.SIGINT
# What a shell shows of SIGPIPE, which Windows does not have.
BROKEN_PIPE = 128 + 13

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class Parser(argparse.ArgumentParser):
    """A parser with the options that every command has, and a word on what may have been meant.

    Its words, which may quote what it was given, go where all others go.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        version = f"mlc-rwkv-world {__version__}"
        self.add_argument("--version", action="version", version=version, help="show the version")

    def error(self, message: str) -> NoReturn:
        """End with what is wrong with the arguments."""
        words: Iterable[str] = ()
        if unknown := re.search(r"unrecognized arguments: (--[^\s=]+)", message):
            words = re.findall(r"--[a-z][a-z0-9-]+", self.format_help())
        elif unknown := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            words = re.findall(r"[^\s,']+", unknown[2])
        meant = nearest(unknown[1], words) if unknown else None
        super().error(message if meant is None else f"{message}. Did you mean {meant}?")

    def _print_message(self, message: str, file: object = None) -> None:
        console.tell(message.rstrip("\n"), file)


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Run `command` on what `parser` reads and give the exit status; failures become one message.

    The message is on stderr. With `--debug`, an option of every command, the traceback comes first.
    """
    console.open_streams()
    debug = False
    try:
        options = parser.parse_args(argv)
        debug = options.debug
        return command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            console.complain_with_traceback()
        report(parser.prog, error)
        return exit_status(error)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that a slip may have made `word` of."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word.lower(), [*words], n=1)), None)


def exit_status(error: Exception) -> int:
    """What a command that failed with `error` exits with."""
    if isinstance(error, RwkvWorldError):
        return error.exit_status
    if is_out_of_memory(error):
        return OutOfMemoryError.exit_status
    if isinstance(error, OSError) and error.errno in _NOT_THERE:
        return NotFoundError.exit_status
    return StorageError.exit_status if is_storage_error(error) else 1


def report(program: str, error: Exception) -> None:
    """Print the message of `error` on stderr."""
    first, *more = _message(error)
    console.complain(f"{program}: {first}", *more)


def _message(error: Exception) -> list[str]:
    if isinstance(error, RwkvWorldError):
        return f"error: {error}".split("\n")
    if is_out_of_memory(error):
        return [f"error: {out_of_memory()}"]
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return [f"error: {place}{error.strerror}."]
    what = f"{type(error).__name__}: {error}"
    return [f"internal error: {what}. Run again with --debug to see where."]
