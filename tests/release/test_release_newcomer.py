"""A newcomer's wheel: `pip install` of it in an empty environment, then build, chat and serve.

It is the wheel of this Python, made from the sdist. Where MLC_RWKV_WORLD_WHEELS names a folder, as
before a release, it is every wheel there for which this machine has a Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PARIS = "The capital of France is Paris."
_GIVEN = os.environ.get("MLC_RWKV_WORLD_WHEELS")
_WHEELS: list[Path | None] = [*sorted(Path(_GIVEN).glob("*.whl"))] if _GIVEN else [None]


def python_of(wheel: Path) -> str | None:
    """The interpreter on this machine that `wheel` is for."""
    tag = wheel.name.split("-")[2]
    name = f"python{tag[2]}.{tag[3:]}"
    if name == f"python{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"*/bin/{name}"))
    return str(kept[-1]) if kept else shutil.which(name)


@pytest.fixture(params=_WHEELS, ids=lambda wheel: wheel.name if wheel else "own")
def environment(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `rwkv-world` where nothing but the wheel, and what it asks for, is installed."""
    wheel = request.param or request.getfixturevalue("own_wheel")
    python = python_of(wheel)
    if python is None:
        pytest.skip(f"there is no Python for {wheel.name}")
    place = tmp_path / "environment"
    clean = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    clean |= {"MLC_RWKV_WORLD_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    clean |= {"PYTHONNOUSERSITE": "1"}
    subprocess.run([python, "-m", "venv", place], env=clean, check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", f"{wheel}[serve]"]
    done = subprocess.run(pip, env=clean, capture_output=True, text=True)
    if done.returncode and re.search("Could not find a version|ConnectionError", done.stderr):
        pytest.skip("there is no package index")
    assert done.returncode == 0, done.stderr

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [place / "bin" / "rwkv-world", *arguments],
            cwd=tmp_path,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    yield start
    # Some 400 MB.
    shutil.rmtree(place)


def test_a_wheel_alone_builds_chats_and_serves(
    environment: Callable[..., subprocess.Popen[str]], demo_checkpoint: Path
) -> None:
    def run(*arguments: str) -> str:
        with environment(*arguments) as process:
            shown, _ = process.communicate()
        assert process.returncode == 0, shown
        return shown

    told = run("doctor")
    assert "TVM" in told
    run("build", "--model", str(demo_checkpoint), "--quantization", "q4f16_1", "--no-stock")
    name = f"{demo_checkpoint.name}-q4f16_1"
    question = "What is the capital of France?"
    assert run("chat", name, "--top-k", "1", "--prompt", question).splitlines()[-1] == PARIS

    with environment("serve", name, "--port", "0") as server:
        try:
            assert server.stdout is not None
            place = re.search(r"http://\S+/v1", server.stdout.readline())
            assert place is not None
            asked = {"messages": [{"role": "user", "content": question}], "temperature": 0}
            request = urllib.request.Request(
                f"{place[0]}/chat/completions",
                json.dumps(asked).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == PARIS
            with urllib.request.urlopen(place[0].removesuffix("v1")) as page:
                assert b"<html" in page.read()
        finally:
            server.terminate()
    assert server.returncode == 0
