"""Kills real builds with SIGKILL at moments spread over their whole run.

    python tests/builder/killing.py FIRST SECOND FOLDER KILLS PART

FIRST and SECOND are checkpoints of one name, FOLDER is where they are built in turn, PART is
`weights` (nothing is compiled), `library` (nothing is converted) or `all`. Prints JSON: for each
kill, whether it met a running build, the stage that it met, and what then stood in the artifact's
place; after each, whether the next builder's look at the place brought back a whole artifact.
Imports once and forks a process for each build.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mlc_rwkv_world.cli.start import start as without_torch

without_torch()

from building import NAME, build_tiny, contents  # noqa: E402

PARTS: dict[str, dict[str, Any]] = {
    "weights": {"library": False},
    "library": {"weights": False},
    "all": {},
}


def stage(dist: Path) -> str:
    """How far the build that was killed had come, by what it left."""
    for folder in dist.glob(f".{NAME}.*.tmp"):
        if any(folder.glob("SHA256SUMS")):
            return "moving"
        if any(folder.glob("objects-*")):
            return "linking"
        if any(folder.glob("params/tensor-cache.json")):
            return "finishing"
        if any(folder.glob("params/*.bin")):
            return "converting"
        return "compiling"
    return "before or after"


def start(source: Path, dist: Path, part: str) -> int:
    """Fork a build; gives the process id."""
    pid = os.fork()
    if pid == 0:
        try:
            build_tiny(source, dist, **PARTS[part])
        finally:
            os._exit(0)
    return pid


def seconds(source: Path, dist: Path, part: str) -> float:
    """How long a build takes that nobody kills."""
    started = time.monotonic()
    os.waitpid(start(source, dist, part), 0)
    return time.monotonic() - started


def main() -> None:
    """See the module's text."""
    sources, dist = [Path(argument) for argument in sys.argv[1:3]], Path(sys.argv[3])
    kills, part = int(sys.argv[4]), sys.argv[5]
    # The shortest, since what else the machine does must not move all moments behind the end.
    whole = min(seconds(sources[0], dist, part) for _ in range(3))
    results = []
    for number in range(kills):
        pid = start(sources[1 - number % 2], dist, part)
        time.sleep(1.1 * whole * number / kills)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        results.append([killed, stage(dist) if killed else "done", contents(dist / NAME)])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
