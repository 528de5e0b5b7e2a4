"""Artifacts and oracles that several rooms' tests share."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.once import SHARED, once

# Threads for the linear algebra of numpy and PyTorch spin, and there is a worker for each core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# TVM imports PyTorch where it can, for seconds. The few tests that need it do so themselves.
if "torch" not in sys.modules:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        import tvm.relax  # noqa: F401
from mlc_rwkv_world.runtime import threads

# TVM's pool of threads is as large as this says when it is made. Kernels are tested on two of them
# (`two_threads`). Engines run on one, since two beside a busy machine mostly wait for each other;
# `support.same_bits` has engines on up to three.
os.environ[threads.VARIABLE] = "2"
threads.use(2)
os.environ[threads.VARIABLE] = "1"
# Whatever tests import stays, and most of what they make is no garbage either.
gc.set_threshold(50_000)

ROOT = Path(__file__).parent.parent
os.environ.setdefault("RWKV_JIT_ON", "0")
os.environ.setdefault("RWKV_V7_ON", "0")
# A shell's background jobs start with it ignored, and would pass that on to the tests' processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Seconds of a test's call that `make quick` can bear.
QUICK = 2.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which tests have become slow without being marked so."""
    passed = terminalreporter.stats.get("passed", [])
    late = [test for test in passed if test.duration > QUICK and "slow" not in test.keywords]
    if late:
        terminalreporter.section("no pytest.mark.slow, and took more than a second or two")
        for test in late:
            terminalreporter.line(f"{test.duration:.1f}s {test.nodeid}")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of this run's own, which all of its worker processes see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_place(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the per-user record out of the user's folder, and child processes out of the clone.

    Python looks in the current folder first, where the package has no compiled module.
    """
    os.environ["MLC_RWKV_WORLD_HOME"] = str(shared / "home")
    os.environ[SHARED] = str(shared)
    os.chdir(tmp_path_factory.mktemp("place"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What this process calls runs on two threads."""
    threads.use(2)
    yield
    threads.use(None)


def _unpacked(folder: Path, version: str) -> Path:
    unpack = [sys.executable, str(ROOT / "demo" / "unpack.py"), str(folder), "--version", version]
    return once(folder, lambda: subprocess.run(unpack, check=True))


@pytest.fixture(scope="session")
def demo_checkpoint(shared: Path) -> Path:
    """The trained RWKV-4, unpacked as a Hugging Face folder by its own command."""
    return _unpacked(shared / "RWKV-4-World-Demo", "4")


@pytest.fixture(scope="session")
def demo7_checkpoint(shared: Path) -> Path:
    """The trained RWKV-7, which can think before it answers."""
    return _unpacked(shared / "RWKV-7-G1-Demo", "7")


def _built(checkpoint: Path, output: Path, *, stock: bool) -> Callable[[str], Path]:
    def artifact(quantization: str) -> Path:
        from mlc_rwkv_world import build

        def make() -> None:
            build(
                checkpoint,
                target="llvm",
                quantization=quantization,
                output=output,
                max_batch_size=64,
                stock=stock,
            )

        return once(output / f"{checkpoint.name}-{quantization}", make)

    return artifact


@pytest.fixture(scope="session")
def demo_artifact(demo_checkpoint: Path, shared: Path) -> Callable[[str], Path]:
    """`demo_artifact(quantization)`: the folder of the trained RWKV-4 built for this CPU.

    It has no functions with stock names. Never to be changed: all tests share it.
    """
    return _built(demo_checkpoint, shared / "dist", stock=False)


@pytest.fixture(scope="session")
def demo7_artifact(demo7_checkpoint: Path, shared: Path) -> Callable[[str], Path]:
    """`demo_artifact` of the trained RWKV-7."""
    return _built(demo7_checkpoint, shared / "dist", stock=False)


@pytest.fixture(scope="session")
def stock_artifact(demo_checkpoint: Path, shared: Path) -> Callable[[str], Path]:
    """`demo_artifact` as a build makes it by itself, with the functions that mlc_llm calls."""
    return _built(demo_checkpoint, shared / "stock", stock=True)
