"""`docs/first-hour.md`, line by line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.hub_server import HubServer

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "first-hour.md"
REPO = "StarRing2022/RWKV-4-World-Demo"
# Where no script was installed, the module is the same program under its own name.
_SCRIPT = """#!/bin/sh
exec {python} -c 'import sys; sys.argv[0] = "rwkv-world"
from mlc_rwkv_world.__main__ import main; sys.exit(main())' "$@"
"""


def steps() -> list[tuple[str, list[str]]]:
    """Each command of the page, and the lines that it shows for it."""
    found: list[tuple[str, list[str]]] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ "):
            found.append((line.removeprefix("    $ "), []))
        elif line.startswith("    > ") and found and not found[-1][1]:
            found[-1] = (found[-1][0] + "\n" + line.removeprefix("    > "), [])
        elif line.startswith("    ") and found:
            found[-1][1].append(line.removeprefix("    "))
    return found


def agrees(shown: str, expected: list[str]) -> bool:
    """Whether `shown` is what the page says, where `...` stands for anything."""
    pattern = "".join(re.escape(line).replace(r"\.\.\.", ".*?") + "\n" for line in expected)
    return re.fullmatch(pattern, shown, re.DOTALL) is not None


def test_the_comparison_can_fail() -> None:
    assert agrees("a b c\nd\n", ["a ... c", "d"]) and agrees("x\ny\nz\n", ["x", "...", "z"])
    assert not agrees("a b c\nd\n", ["a ... c"]) and not agrees("", ["a"])


def test_everything_on_the_page(demo_checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    program = tmp_path / "bin" / "rwkv-world"
    program.parent.mkdir()
    program.write_text(_SCRIPT.format(python=sys.executable))
    program.chmod(0o755)
    with HubServer({REPO: demo_checkpoint}) as server:
        environment = os.environ | server.environment(tmp_path / "hub")
        environment |= {"MLC_RWKV_WORLD_HOME": str(tmp_path / "own"), "TERM": "dumb"}
        environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
        assert len(steps()) > 16
        try:
            for command, expected in steps():
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=place,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    # For hangs: a server that never says where it listens.
                    timeout=1200,
                )
                assert agrees(done.stdout, expected), f"{command}\n{done.stdout}"
        finally:
            # Whatever failed, the server ends.
            if (place / "server").exists():
                with suppress(ProcessLookupError):
                    os.kill(int((place / "server").read_text()), signal.SIGTERM)
