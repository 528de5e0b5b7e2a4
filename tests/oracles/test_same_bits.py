"""Logits and states are the same to the bit however a text is read, in every version and format."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints
from support.once import once

import mlc_rwkv_world as world
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.storage.formats import FORMATS

pytestmark = pytest.mark.slow

WAYS = 200
VERSIONS = (4, 5, 6, 7)
# By name: version, format, and further options of a build.
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    f"rwkv{version} {name}": (version, name, {}) for version in VERSIONS for name in FORMATS
}
for _version in (4, 7):
    _name = f"rwkv{_version}"
    CASES |= {
        f"{_name} q4f16_1 fp32-layers": (_version, "q4f16_1", {"fp32_layers": "0"}),
        f"{_name} q4f16_1 float32": (_version, "q4f16_1", {"arithmetic": "float32"}),
        f"{_name} q0f16 bfloat16": (_version, "q0f16", {"arithmetic": "bfloat16"}),
        f"{_name} q4f16_1 haswell": (_version, "q4f16_1", {"target": "llvm -mcpu=haswell"}),
        f"{_name} q8f16_1 haswell": (_version, "q8f16_1", {"target": "llvm -mcpu=haswell"}),
        f"{_name} q4f16_1 x86-64": (_version, "q4f16_1", {"target": "llvm -mcpu=x86-64"}),
    }
# Rows that are no whole blocks of 32, which have no kernels of their own.
ODD = "rwkv4 q0f16 odd"


@pytest.fixture(scope="session")
def odd(shared: Path) -> Path:
    """The folder of a random RWKV-4 of 72 channels."""
    source, output = shared / "odd.pth", shared / "odd"

    def build() -> None:
        checkpoints.write_pth(source, checkpoints.random_world(2, 72))
        world.build(source, target="llvm", quantization="q0f16", output=output, stock=False)

    (folder,) = once(output, build).iterdir()
    return folder


@pytest.mark.parametrize("name", [*CASES, ODD])
def test_every_way_gives_the_same_bits(
    name: str, small: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    if name == ODD:
        folder = request.getfixturevalue("odd")
    else:
        version, quantization, options = CASES[name]
        cpu = options.get("target", "").partition("-mcpu=")[2]
        if cpu and (
            platform.machine() != "x86_64"
            or missing_features(resolve(options["target"]).cpu_features())
        ):
            pytest.skip(f"this CPU is no {cpu}")
        folder = small(version, quantization, **options)
    command = [sys.executable, str(Path(__file__).with_name("ways.py")), str(folder)]
    command += ["--ways", str(WAYS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found is None, f"{name}: {found}; again with --first SEED --ways 1"
