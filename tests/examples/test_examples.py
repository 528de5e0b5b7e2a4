"""Every program in `examples/`, and the notebook, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
PARIS, TOKYO = "The capital of France is Paris.", "The capital of Japan is Tokyo."


@pytest.fixture(scope="module")
def model(demo_artifact: Callable[[str], Path]) -> str:
    return str(demo_artifact("q0f32"))


@pytest.fixture
def run(model: str, tmp_path: Path) -> Callable[..., str]:
    def run(name: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), model, *arguments],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_none_is_forgotten() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(names) >= 6
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f'"{name}"' in text
        assert f"({name})" in listed


def test_chat(run: Callable[..., str]) -> None:
    shown = run("chat.py")
    assert f"Assistant: {PARIS}\n" in shown
    assert f"Assistant: {TOKYO}\n" in shown
    assert re.search(r"prefill: \d", shown)


def test_batch(run: Callable[..., str]) -> None:
    lines = run("batch.py").splitlines()
    assert lines[0].endswith(f"-> {PARIS}")
    assert lines[1].endswith("-> 中国的首都是北京。")
    assert len(lines) == 3


def test_states(run: Callable[..., str], tmp_path: Path) -> None:
    assert run("states.py", "kept.state") == f"{PARIS}\n{TOKYO}\n"
    assert (tmp_path / "kept.state").stat().st_size > 1000


def test_events(run: Callable[..., str]) -> None:
    lines = run("events.py").splitlines()
    assert lines[-1] == "It ended by stop."
    assert "' The'" in lines[0] and re.search(r"\[\d+: -?\d+\.\d{3}, \d+: ", lines[0])


def test_client(model: str) -> None:
    serve = [sys.executable, "-m", "mlc_rwkv_world", "serve", model, "--port", "0", "--no-page"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        place = re.search(r"http://\S+/v1", server.stdout.readline())
        assert place is not None
        client = [sys.executable, str(EXAMPLES / "client.py"), place[0]]
        done = subprocess.run(client, capture_output=True, encoding="utf-8")
        server.terminate()
        assert done.returncode == 0, done.stderr
    expected = [f"User: What is the capital of {name}?" for name in ("France", "Japan")]
    assert done.stdout.splitlines() == [
        expected[0],
        f"Assistant: {PARIS}",
        expected[1],
        f"Assistant: {TOKYO}",
    ]


def test_perplexity(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text(f"User: What is the capital of France?\n\nAssistant: {PARIS}\n")
    assert re.search(r"perplexity \d", run("perplexity.py", "text"))


def test_tour(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, as `jupyter` runs it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("MODEL", model)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    shown = str([cell.get("outputs") for cell in notebook.cells])
    assert PARIS in shown
    assert "bits per byte" in shown
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
