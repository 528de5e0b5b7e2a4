"""What a command leaves behind when it ends: one clear message and an exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from mlc_rwkv_world.artifact.storage import is_storage_error
from mlc_rwkv_world.errors import RwkvWorldError, StorageError, printable

INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Run `command` on what `parser` reads and give the exit status; failures become one message.

    The message is on stderr. With `--debug`, an option of every command, the traceback comes first.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain again when it exits.
        _silence_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        report(parser.prog, error)
        if isinstance(error, OSError) and not isinstance(error, RwkvWorldError):
            # It may be stdout that cannot be written; Python would complain again when it exits.
            with suppress(OSError):
                sys.stdout.flush()
                return exit_status(error)
            _silence_stdout()
        return exit_status(error)


def exit_status(error: Exception) -> int:
    """What a command that failed with `error` exits with."""
    if isinstance(error, RwkvWorldError):
        return error.exit_status
    return StorageError.exit_status if is_storage_error(error) else 1


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(program: str, error: Exception) -> None:
    """Print the message of `error` on stderr."""
    print(f"{program}: {describe(error)}", file=sys.stderr)


def describe(error: Exception) -> str:
    """One message for a user."""
    return printable(_message(error))


def _message(error: Exception) -> str:
    if isinstance(error, RwkvWorldError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"error: {place}{error.strerror}."
    return f"internal error: {type(error).__name__}: {error}. Run again with --debug to see where."
