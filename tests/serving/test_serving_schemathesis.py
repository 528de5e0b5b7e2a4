"""What the server says of itself, held against what it does by schemathesis."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from process import Server
from support.patience import SECONDS

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)
def test_it_does_what_its_description_says(
    demo_artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    """Answers, errors, headers and methods are as described, whatever is asked; none is a 5xx.

    One check is left out: a schema does not say all, so that what fits it may be refused (a prompt
    that is empty, a token that there is none of).
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--no-color"]
    options = "--phases=coverage,fuzzing", "--generation-deterministic", "--max-examples=10"
    left_out = "--exclude-checks=positive_data_acceptance"
    serving = "--max-answer-tokens", "8", "--allow-tuned-states"
    with Server(demo_artifact("q0f32"), *serving) as server:
        found = subprocess.run(
            [*command, *options, left_out, f"{server.url}/openapi.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        server.until_idle()
    assert found.returncode == 0, found.stdout + found.stderr
    tried = re.search(r"(\d+) generated, \1 passed", found.stdout)
    assert tried is not None and int(tried[1]) > 500, found.stdout
