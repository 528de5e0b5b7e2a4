"""Libraries that several oracles run, each compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Tensors, random_rwkv7, random_small, random_world, write_pth
from support.once import once

import mlc_rwkv_world as world

# What `--arithmetic auto` is where a CPU multiplies bytes.
_AUTO = {"q0f16": "float32", "q4f16_1": "int8", "q8f16_1": "int8"}


def _two_blocks(version: int) -> Tensors:
    if version in (5, 6):
        return random_small(version)
    return random_world(2, 128) if version == 4 else random_rwkv7(2, 128)


@pytest.fixture(scope="session")
def small(
    shared: Path,
    demo_checkpoint: Path,
    demo7_checkpoint: Path,
    demo_artifact: Callable[[str], Path],
    demo7_artifact: Callable[[str], Path],
) -> Callable[..., Path]:
    """`small(version, quantization, **options)`: the folder of a small model built for this CPU.

    RWKV-4 and 7 are the trained ones, whose libraries other tests have as well, unless more than
    the arithmetic is chosen; the others are random. Never to be changed: all tests share them.
    """
    trained = {4: (demo_checkpoint, demo_artifact), 7: (demo7_checkpoint, demo7_artifact)}

    def built(version: int, quantization: str, **options: Any) -> Path:
        if options.get("arithmetic", "auto") == _AUTO.get(quantization):
            del options["arithmetic"]
        if version in trained and not options:
            return trained[version][1](quantization)
        if version in trained and options.keys() == {"arithmetic"}:
            source = trained[version][0]
        else:
            source = shared / f"small-rwkv{version}.pth"
            once(source, lambda: write_pth(source, _two_blocks(version)))
        name = "-".join([f"rwkv{version}", quantization, *map(str, options.values())])
        output = shared / "small" / name.replace(" ", "")
        build = {"target": "llvm", "quantization": quantization, "stock": False, **options}
        once(output, lambda: world.build(source, output=output, **build))
        (folder,) = output.iterdir()
        return folder

    return built


@pytest.fixture(scope="session")
def small_library(small: Callable[..., Path]) -> Callable[..., Path]:
    """`small_library(...)`: the library of `small(...)`, for other weights of its shape."""

    def library(version: int, quantization: str, **options: Any) -> Path:
        (path,) = small(version, quantization, **options).glob("*.so")
        return path

    return library
