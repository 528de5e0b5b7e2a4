"""Whole models on aarch64, by qemu's emulation of Linux programs: the package, in its Python.

`python -m support.aarch64.prepare` makes the folder that it needs, outside the tests, since it
downloads 120 MB. Without it, tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

# A server's core with dot products and half precision.
TARGET = "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1"
TREE = Path(__file__).parents[3]
FOLDER = TREE / "build" / "aarch64"
# Debian's files, wheels' files, ours.
ROOT, SITE, PACKAGE = (FOLDER / name for name in ("root", "site", "package"))
READY = FOLDER / "ready"
EMULATOR = "qemu-aarch64-static"

Logits = npt.NDArray[np.float32]


def package_digest() -> str:
    """Of the sources that PACKAGE is made of, which must be those that are tested."""
    total = hashlib.sha256()
    for folder in ("mlc_rwkv_world", "cpp"):
        for path in sorted((TREE / folder).rglob("*")):
            if path.suffix in (".py", ".cc", ".h"):
                total.update(path.read_bytes())
    return total.hexdigest()


@cache
def command() -> list[str]:
    """What runs a Python program there; skips the test where that cannot be."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is missing: apt-get install qemu-user-static")
    if not READY.exists() or READY.read_text() != package_digest():
        pytest.skip(f"{FOLDER} is not of this tree: python -m support.aarch64.prepare, in tests")
    path = os.pathsep.join([str(PACKAGE), str(SITE)])
    (python,) = (ROOT / "usr" / "bin").glob("python3.*")
    environment = ["-E", f"PYTHONPATH={path}", "-E", "PYTHONDONTWRITEBYTECODE=1"]
    return [EMULATOR, "-L", str(ROOT), *environment, str(python)]


def linked(artifact: Path) -> Path:
    """The library of an artifact that was built for TARGET, where no compiler for it was known."""
    (archive,) = artifact.glob("*.tar")
    objects, library = artifact.with_name("objects"), artifact.with_name("aarch64.so")
    shutil.unpack_archive(archive, objects, filter="data")
    names = [str(path) for path in objects.iterdir()]
    subprocess.run(["aarch64-linux-gnu-gcc", "-shared", "-o", library, *names], check=True)
    return library


class State:
    """One of an `Engine`'s states."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.number = number
        self._engine = engine

    def save(self, path: Path) -> None:
        self._engine.ask("save", str(path), self.number)

    def load(self, path: Path) -> None:
        self._engine.ask("load", str(path), self.number)

    def numpy(self) -> Logits:
        """Its content as one row."""
        return self._engine.ask("numpy", None, self.number)

    @property
    def tokens_read(self) -> int:
        return int(self._engine.ask("tokens_read", None, self.number)[0, 0])


class Engine:
    """An engine in a process of its own, as far as oracles need one."""

    def __init__(self, artifact: Path) -> None:
        worker = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(
            [*command(), str(worker), str(artifact), str(linked(artifact))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def new_state(self) -> State:
        return State(self, int(self.ask("new_state")[0, 0]))

    def prefill(self, ids: Sequence[int], state: State) -> Logits:
        return self.ask("prefill", ids, state.number).reshape(-1)

    def decode(self, token: int, state: State) -> Logits:
        return self.ask("decode", token, state.number).reshape(-1)

    def prefill_batch(self, ids: Sequence[Sequence[int]], states: Sequence[State]) -> Logits:
        return self.ask("prefill_batch", ids, [state.number for state in states])

    def decode_batch(self, tokens: Sequence[int], states: Sequence[State]) -> Logits:
        return self.ask("decode_batch", tokens, [state.number for state in states])

    def ask(self, method: str, *arguments: Any) -> Logits:
        """A matrix, of which the worker first says its shape."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        process.stdin.flush()
        head = process.stdout.readline()
        assert head, f"the worker ended with {process.wait()}"
        rows, columns = json.loads(head)
        data = process.stdout.read(4 * rows * columns)
        return np.frombuffer(data, np.float32).reshape(rows, columns)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0
