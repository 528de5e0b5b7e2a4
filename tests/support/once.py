"""What the processes of one test run share, made by whichever needs it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# Where a test run's processes and their children find its folder.
SHARED = "RWKV_WORLD_TESTS_SHARED"


def once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, which `make` makes unless it is there; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.once")):
        if not path.exists():
            try:
                make()
            except BaseException:
                # The next one would take half of it for the whole.
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
                raise
    return path
