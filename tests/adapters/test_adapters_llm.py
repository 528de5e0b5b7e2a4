"""The plugin of `llm`, in its own command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).parents[2] / "plugins" / "llm-rwkv-world"
_METADATA = "Metadata-Version: 2.1\nName: llm-rwkv-world\nVersion: 0.1.0\n"
_ENTRY = "[llm]\nrwkv_world = llm_rwkv_world\n"


@pytest.mark.skipif(find_spec("llm") is None, reason="llm is not installed")
def test_it_lists_and_answers(demo_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    name = demo_artifact("q0f32").name
    # As an installed distribution would be found.
    site = tmp_path / "site" / "llm_rwkv_world-0.1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text(_METADATA)
    (site / "entry_points.txt").write_text(_ENTRY)
    path = os.pathsep.join([str(PLUGIN), str(site.parent)])
    environment = os.environ | {"PYTHONPATH": path, "LLM_USER_PATH": str(tmp_path / "user")}

    def llm(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"rwkv-world/{name}" in llm("models")
    ask = ["-m", f"rwkv-world/{name}", "-o", "temperature", "0"]
    assert llm(*ask, "What is the capital of France?") == "The capital of France is Paris.\n"
    assert llm("-c", *ask, "What is the capital of Japan?") == "The capital of Japan is Tokyo.\n"
