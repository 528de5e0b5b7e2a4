"""Devices, where TVM's runtime is loaded without its compiler as the chat command does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import cuda_emulation

OPEN = """
import sys
sys.modules["torch"] = None
from mlc_rwkv_world.runtime.device import kind_of, open_device
assert "tvm" not in sys.modules
print(kind_of(open_device("auto", ["cpu", "cuda"])), kind_of(open_device("cpu", [])))
"""


def opened(libraries: Path) -> str:
    """What a process prints that finds NVIDIA's libraries, or their stand-ins, in a folder."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or "emulates a GPU"
)
def test_a_gpu_is_found_without_the_compiler(tmp_path: Path) -> None:
    runtime, _ = cuda_emulation.libraries(tmp_path)
    assert opened(runtime.parent) == "cuda cpu\n"


def test_no_gpu_where_its_driver_is_not(tmp_path: Path) -> None:
    assert opened(tmp_path) == "cpu cpu\n"
