"""Logits and states are the same to the bit however a text is read, in every version and format."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
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
RANDOM: Mapping[int, Callable[..., checkpoints.Tensors]] = {
    4: checkpoints.random_world,
    5: checkpoints.random_rwkv5,
    6: partial(checkpoints.random_rwkv5, version="6.0"),
    7: checkpoints.random_rwkv7,
}
# By name: version, width, format, and further options of a build.
CASES: dict[str, tuple[int, int, str, dict[str, Any]]] = {
    f"rwkv{version} {name}": (version, 128, name, {}) for version in RANDOM for name in FORMATS
}
for _version in (4, 7):
    _name = f"rwkv{_version}"
    CASES |= {
        f"{_name} q4f16_1 fp32-layers": (_version, 128, "q4f16_1", {"fp32_layers": "0"}),
        f"{_name} q4f16_1 float32": (_version, 128, "q4f16_1", {"arithmetic": "float32"}),
        f"{_name} q0f16 bfloat16": (_version, 128, "q0f16", {"arithmetic": "bfloat16"}),
        f"{_name} q4f16_1 haswell": (_version, 128, "q4f16_1", {"target": "llvm -mcpu=haswell"}),
        f"{_name} q8f16_1 haswell": (_version, 128, "q8f16_1", {"target": "llvm -mcpu=haswell"}),
        f"{_name} q4f16_1 x86-64": (_version, 128, "q4f16_1", {"target": "llvm -mcpu=x86-64"}),
    }
# Rows that are no whole blocks of 32, which have no kernels of their own.
CASES["rwkv4 q0f16 odd"] = (4, 72, "q0f16", {})


@pytest.mark.parametrize("name", CASES)
def test_every_way_gives_the_same_bits(name: str, shared: Path) -> None:
    version, width, quantization, options = CASES[name]
    options = {"target": "llvm", **options}
    cpu = options["target"].partition("-mcpu=")[2]
    missing = platform.machine() != "x86_64" or missing_features(
        resolve(options["target"]).cpu_features()
    )
    if cpu and missing:
        pytest.skip(f"this CPU is no {cpu}")
    source = once(
        shared / f"bits-rwkv{version}-{width}.pth",
        lambda: checkpoints.write_pth(
            shared / f"bits-rwkv{version}-{width}.pth", RANDOM[version](2, width)
        ),
    )
    built = world.build(
        source,
        quantization=quantization,
        output=shared / "bits" / name.replace(" ", "-"),
        stock=False,
        **options,
    )
    command = [sys.executable, str(Path(__file__).with_name("ways.py")), str(built.folder)]
    command += ["--ways", str(WAYS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found is None, f"{name}: {found}; again with --first SEED --ways 1"
