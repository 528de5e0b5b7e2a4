"""Artifacts and oracles that several rooms' tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("RWKV_JIT_ON", "0")
os.environ.setdefault("RWKV_V7_ON", "0")


@pytest.fixture(scope="session", autouse=True)
def _own_place(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the per-user record out of the user's folder, and child processes out of the clone.

    Python looks in the current folder first, where the package has no compiled module.
    """
    os.environ["MLC_RWKV_WORLD_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.chdir(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, unpacked as a Hugging Face folder by its own command."""
    folder = tmp_path_factory.mktemp("models") / "RWKV-4-World-Demo"
    subprocess.run([sys.executable, ROOT / "demo" / "unpack.py", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def demo_artifact(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`demo_artifact(quantization)`: the folder of the trained model built for this CPU."""
    output = tmp_path_factory.mktemp("dist")
    built: dict[str, Path] = {}

    def artifact(quantization: str) -> Path:
        if quantization not in built:
            from mlc_rwkv_world import build

            built[quantization] = build(
                demo_checkpoint,
                target="llvm",
                quantization=quantization,
                output=output,
                max_batch_size=64,
            ).folder
        return built[quantization]

    return artifact
