"""The errors that a user can meet, one class and one exit status for each kind.

Every message names the file, the value that was found, and the way out. Commands print
the message alone and exit with `exit_status`; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

from mlc_rwkv_world.characters import printable


class RwkvWorldError(Exception):
    """Base of every error that this package raises on purpose.

    Its text is safe to show: what a file smuggles into a message can neither steer a terminal nor
    begin a line. `lines` follow the message.
    """

    exit_status = 1

    def __init__(self, message: str = "", *, lines: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)

    def __str__(self) -> str:
        return "\n".join(map(printable, (super().__str__(), *self.lines)))


class UsageError(RwkvWorldError, ValueError):
    """An option or argument has a value that cannot be used."""

    exit_status = 2


class NotFoundError(RwkvWorldError, FileNotFoundError):
    """A model, artifact or file is not where it was looked for."""

    exit_status = 3


class CheckpointError(RwkvWorldError, ValueError):
    """A checkpoint cannot be read, or is not an RWKV World model."""

    exit_status = 4


class VocabularyError(RwkvWorldError, ValueError):
    """A vocabulary file is missing, damaged or of the wrong size."""

    exit_status = 5


class ArtifactError(RwkvWorldError, ValueError):
    """A built artifact is damaged, incomplete, or does not fit this machine."""

    exit_status = 6


class TargetError(RwkvWorldError, ValueError):
    """A compilation target is unknown, or cannot be built for here."""

    exit_status = 7


class StateError(RwkvWorldError, ValueError):
    """A state file is damaged, or belongs to another model."""

    exit_status = 8


class DownloadError(RwkvWorldError):
    """A model could not be fetched from the hub."""

    exit_status = 9


class InstallationError(RwkvWorldError, ImportError):
    """The package itself is incomplete."""

    exit_status = 10


class StorageError(RwkvWorldError, OSError):
    """Something could not be written: the disk is full, read-only or broken."""

    exit_status = 11


class OutOfMemoryError(RwkvWorldError, MemoryError):
    """The memory of this machine, or of its device, does not suffice."""

    exit_status = 12


# How TVM and the drivers below it say so; C++ itself says std::bad_alloc.
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|OUT_OF_MEMORY|ErrorMemoryAllocation|cannot allocate memory|"
    r"out of host memory|failed to allocate",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, in whichever of the ways there are."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def out_of_memory(when: str = "") -> OutOfMemoryError:
    """The error for memory that ran out; `when` begins with a space."""
    return OutOfMemoryError(
        f"memory ran out{when}. Close other programs, take a smaller model or one with fewer "
        "bits per weight, or raise the limit (ulimit -v)."
    )
