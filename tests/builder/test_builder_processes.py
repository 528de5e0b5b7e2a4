"""The build command as users run it: as processes, side by side, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from building import NAME, OPTIONS, contents
from support import patience
from support.checkpoints import Tensors, random_world, write_pth

import mlc_rwkv_world
from mlc_rwkv_world import Artifact
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import NotFoundError

pytestmark = pytest.mark.slow

COMMANDS = [["mlc_llm.build"], ["mlc_rwkv_world", "build"]]


def start(*arguments: object, command: list[str] = COMMANDS[0]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=patience.SECONDS)
    return process.returncode, out, err


def options(source: Path, dist: Path) -> list[object]:
    return ["--hf-path", source, "--artifact-path", dist, *OPTIONS]


def test_what_a_build_prints(source: Path, dist: Path) -> None:
    old_options = ["--use-cuda-graph", "--num-shards", "1", "--use-safetensors"]
    status, out, err = finish(start(*options(source, dist), *old_options))
    assert status == 0, err
    assert "note: --num-shards has no effect here: the model runs on one device." in err
    assert "note: --use-cuda-graph has no effect here: decode steps on CUDA are always" in err
    assert "--use-safetensors" not in err
    lines = out.splitlines()
    folder = dist / NAME
    nbytes = ParameterIndex.read(folder / "params").nbytes
    assert "converting weights to q4f16_1 ..." in lines
    weights = next(line for line in lines if line.startswith("  weights"))
    assert weights.split()[1] == str(folder / "params")
    assert f"{nbytes / 1e6:.1f} MB" in weights
    assert "4.5" in weights and "bits per weight" in weights
    assert "  template world" in lines
    library = next(line for line in lines if line.startswith("  library"))
    assert library.split()[1] == str(folder / f"{NAME}-llvm.so")
    said = read_embedded(folder / f"{NAME}-llvm.so")
    assert said is not None and not said.stock
    assert lines[-1] == f"Chat with it:  mlc_chat_cli --model {NAME}"


@pytest.mark.parametrize("home", ["~no-such-user", "a file"])
def test_what_a_build_prints_works_without_a_record(
    source: Path, built: Artifact, tmp_path: Path, home: str
) -> None:
    (tmp_path / "a file").touch()
    place: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "MLC_RWKV_WORLD_HOME": home}}
    arguments = [*map(str, options(source, Path())), "--reuse-lib", str(built.libraries[0])]
    build = [sys.executable, "-m", "mlc_rwkv_world", "build", *arguments]
    done = subprocess.run(build, **place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].removeprefix("Chat with it:  mlc_chat_cli ")
    assert command == f"--model ./{NAME}"
    chat = [sys.executable, "-m", "mlc_rwkv_world", "chat", *command.split(), "--prompt", "Hi"]
    done = subprocess.run([*chat, "--max-tokens", "1"], **place, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_builds_at_once(source: Path, dist: Path) -> None:
    processes = [start(*options(source, dist), command=command) for command in COMMANDS]
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    waiting = f"waiting for another build of {NAME} ..."
    assert sum(waiting in out for _, out, _ in results) == 1
    assert {path.name for path in dist.iterdir()} == {NAME}
    assert mlc_rwkv_world.load(dist / NAME, "cpu").vocab_size == 65536


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint called `tiny` that takes seconds to convert."""
    world: Tensors = random_world(1, 256)
    return write_pth(tmp_path_factory.mktemp("slow") / "tiny.pth", world, "float16")


def _kill_while_converting(source: Path, dist: Path) -> None:
    process = start(*options(source, dist), "--convert-weights-only")
    deadline = time.monotonic() + patience.SECONDS
    while not list(dist.glob(f".{NAME}.*.tmp/params/params_shard_0.bin")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert process.returncode == -signal.SIGKILL


def test_killed_builds_leave_nothing_that_looks_complete(
    slow: Path, source: Path, dist: Path
) -> None:
    _kill_while_converting(slow, dist)
    assert not (dist / NAME).exists()
    with pytest.raises(NotFoundError):
        find(dist / NAME)
    for left in dist.glob(f".{NAME}.*.tmp"):
        assert not (left / "params" / "tensor-cache.json").exists()

    # The next build starts clean.
    status, _, err = finish(start(*options(source, dist), "--convert-weights-only"))
    assert status == 0, err
    assert {path.name for path in dist.iterdir()} == {NAME}
    ParameterIndex.read(dist / NAME / "params").check_files()


def test_killed_rebuilds_leave_the_older_artifact(slow: Path, dist: Path, older: Path) -> None:
    before = contents(older)
    _kill_while_converting(slow, dist)
    assert contents(older) == before
    assert mlc_rwkv_world.load(older, "cpu").vocab_size == 65536


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_statuses_of_failures(
    command: list[str], source: Path, broken: Path, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    cases: list[tuple[int, str, list[str | Path]]] = [
        (2, "is not known", ["--hf-path", source, "--quantization", "q3f16_1"]),
        (3, "no checkpoint called 'nobody'", ["--model", "nobody"]),
        (4, "head.weight", ["--hf-path", broken, "--convert-weights-only"]),
        (7, "is not a target", ["--hf-path", source, "--target", "rocm"]),
    ]
    if command == COMMANDS[0]:
        cases = [*cases[:2], (2, "not allowed with", ["--model", "a", "--hf-path", "b"])]
    else:
        cases = cases[2:]
    running = [
        (status, message, start(*arguments, "--artifact-path", dist, command=command))
        for status, message, arguments in cases
    ]
    for expected, message, process in running:
        status, out, err = finish(process)
        assert status == expected, (out, err)
        assert message in err
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith(f"python -m {' '.join(command)}: error: ") or (
            "build.py: error" in err
        )


def test_debug_shows_where(source: Path, tmp_path: Path) -> None:
    arguments = [
        "--hf-path",
        source,
        "--artifact-path",
        tmp_path,
        "--quantization",
        "q3",
        "--debug",
    ]
    status, _, err = finish(start(*arguments))
    assert status == 2
    assert "Traceback" in err
    assert "UsageError" in err
