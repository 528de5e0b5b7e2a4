"""Whether a model gives the same bits however a text is read; the cases are a version's own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.storage.formats import FORMATS

WAYS = 200
_PROGRAM = Path(__file__).parents[1] / "oracles" / "ways.py"

# By name: a format, and further options of a build.
Cases = dict[str, tuple[str, dict[str, Any]]]
OF_FORMATS: Cases = {name: (name, {}) for name in FORMATS}
# What else changes how a CPU computes: blocks in float32, arithmetics, older CPUs' instructions.
OF_CPUS: Cases = {
    "q4f16_1 fp32-layers": ("q4f16_1", {"fp32_layers": "0"}),
    "q4f16_1 float32": ("q4f16_1", {"arithmetic": "float32"}),
    "q0f16 bfloat16": ("q0f16", {"arithmetic": "bfloat16"}),
    "q4f16_1 haswell": ("q4f16_1", {"target": "llvm -mcpu=haswell"}),
    "q8f16_1 haswell": ("q8f16_1", {"target": "llvm -mcpu=haswell"}),
    "q4f16_1 x86-64": ("q4f16_1", {"target": "llvm -mcpu=x86-64"}),
}


def check(small: Callable[..., Path], version: int, case: tuple[str, dict[str, Any]]) -> None:
    """A small model of a version, built as a case says, gives the same bits in every way."""
    quantization, options = case
    cpu = options.get("target", "").partition("-mcpu=")[2]
    if cpu and (
        platform.machine() != "x86_64"
        or missing_features(resolve(options["target"]).cpu_features())
    ):
        pytest.skip(f"this CPU is no {cpu}")
    check_folder(small(version, quantization, **options))


def check_folder(folder: Path) -> None:
    """A built model gives the same bits in every way."""
    command = [sys.executable, str(_PROGRAM), str(folder), "--ways", str(WAYS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found is None, f"{folder}: {found}; again with --first SEED --ways 1"
