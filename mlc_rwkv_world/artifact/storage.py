"""What a disk can do to a program that writes, told in the words of this package."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlc_rwkv_world.errors import RwkvWorldError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_FAILED = {errno.EIO, errno.ENXIO, errno.ESTALE}


def is_storage_error(error: BaseException) -> bool:
    """Whether `error` says that something could not be stored."""
    return isinstance(error, StorageError) or (
        isinstance(error, OSError) and error.errno in _FULL | _FORBIDDEN | _FAILED
    )


def out_of_space(place: Path) -> StorageError:
    """The error for a disk that is full."""
    return StorageError(
        f"{place}: the disk is full. Make room or give another folder; what was there before is "
        "as it was."
    )


@contextmanager
def storing(place: Path) -> Iterator[None]:
    """Raise StorageError where the block cannot write to `place`."""
    try:
        yield
    except (RwkvWorldError, BrokenPipeError):
        # The latter is of a reader of standard output, which no place on a disk is.
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise out_of_space(place) from error
        # A temporary's name says nothing to whoever named the place.
        path = place if str(error.filename or "").endswith(".tmp") else error.filename or place
        advice = "Give another place; what was there before is as it was."
        raise StorageError(f"{path} cannot be written: {error.strerror}. {advice}") from error
