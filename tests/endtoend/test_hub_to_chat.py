"""The README's commands, from a hub to an answer, as a user's processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import checkpoints, patience
from support.hub_server import HubServer

from mlc_rwkv_world.artifact.embedded import read_embedded

REPO = "StarRing2022/RWKV-4-World-3B"
QUESTION = "What is the capital of France?"
CHAT = ["mlc_rwkv_world", "chat", "--model", "RWKV-4-World-3B-q4f16_1"]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def hub(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with the trained model under a name and in a layout as StarRing2022's."""
    folder = tmp_path_factory.mktemp("hub") / "repo"
    checkpoints.write_hf_bin(folder, checkpoints.read_hf(demo_checkpoint))
    assert not (folder / "tokenizer_model").exists()
    with HubServer({REPO: folder}) as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user types the commands."""
    return tmp_path_factory.mktemp("work")


def _run(
    arguments: list[str], cwd: Path, environment: Mapping[str, str], status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, done.stderr
    return done


def _build(source: str = REPO) -> list[str]:
    return ["mlc_llm.build", "--hf-path", source, "--target", "auto", "--quantization", "q4f16_1"]


@pytest.mark.slow
def test_killed_download_is_made_good_then_skipped_and_the_model_answers(
    hub: HubServer, place: Path, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path / "hf")
    weights = hub.repos[REPO] / "pytorch_model.bin"
    hub.faults.bytes_per_second = 12e6
    process = subprocess.Popen(
        [sys.executable, "-m", *_build()],
        cwd=place,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + patience.SECONDS
    while hub.sent() < weights.stat().st_size // 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.faults.bytes_per_second = None
    before = hub.sent()

    first = _run(_build(), place, environment)
    # The file that was broken off begins anew; nothing is fetched twice beyond it.
    assert hub.sent() - before < weights.stat().st_size + 100_000
    assert "mlc_chat_cli --model RWKV-4-World-3B-q4f16_1" in first.stdout
    assert (place / "dist/models/RWKV-4-World-3B/pytorch_model.bin").is_file()
    (library,) = (place / "dist/RWKV-4-World-3B-q4f16_1").glob("*.so")
    said = read_embedded(library)
    assert said is not None and said.stock

    before = hub.sent()
    _run([*_build(), "--convert-weights-only"], place, environment)
    assert hub.sent() - before < 100_000

    for cwd in (place, tmp_path):
        answered = _run(
            [*CHAT, "--prompt", QUESTION, "--temperature", "0"],
            cwd,
            {},
        )
        assert answered.stdout.strip() == ANSWER


@pytest.mark.slow
def test_pile_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    tensors = checkpoints.random_world(2, 32, vocab_size=50277)
    pth = checkpoints.write_pth(tmp_path / "RWKV-4-Raven-3B.pth", tensors)
    refused = _run(_build(str(pth)), tmp_path, {}, status=4)
    assert "50277" in refused.stderr and "Raven" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").glob("*/params"))


def test_artifact_has_the_documented_layout(demo_artifact: object, tmp_path: Path) -> None:
    folder = demo_artifact("q4f16_1")  # type: ignore[operator]
    names = {path.name for path in (folder / "params").iterdir()}
    assert {"tensor-cache.json", "ndarray-cache.json", "mlc-chat-config.json"} <= names
    assert "tokenizer_model" in names
    assert (folder / "params/tensor-cache.json").read_bytes() == (
        folder / "params/ndarray-cache.json"
    ).read_bytes()
    config = json.loads((folder / "params/mlc-chat-config.json").read_text())
    assert config["model_type"] == "rwkv_world"
    assert (folder / f"{folder.name}-llvm.so").is_file()
