from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planting import LIBRARY_OPTIONS, Precision
from support.checkpoints import read_hf, write_hf_safetensors
from support.once import once
from support.overflows import CASES

import mlc_rwkv_world as world


@pytest.fixture(scope="session")
def planted_checkpoint(demo_checkpoint: Path, shared: Path) -> Callable[[str, int], Path]:
    """`planted_checkpoint(case, layer)`: the trained model with one of `overflows.CASES`."""
    tensors = read_hf(demo_checkpoint)

    def planted(case: str, layer: int) -> Path:
        folder = shared / "planted" / f"{case}{layer}"
        return once(folder, lambda: write_hf_safetensors(folder, CASES[case].plant(tensors, layer)))

    return planted


@pytest.fixture(scope="session")
def planted_params(
    planted_checkpoint: Callable[[str, int], Path], shared: Path
) -> Callable[[str, int, str], Path]:
    """`planted_params(case, layer, quantization)`: an artifact's folder without a library."""
    output = shared / "converted"

    def converted(case: str, layer: int, quantization: str) -> Path:
        source = planted_checkpoint(case, layer)

        def make() -> None:
            world.build(
                source, target="llvm", quantization=quantization, output=output, library=False
            )

        return once(output / f"{source.name}-{quantization}", make)

    return converted


@pytest.fixture(scope="session")
def library(
    demo_checkpoint: Path, demo_artifact: Callable[[str], Path], shared: Path
) -> Callable[[Precision], Path]:
    """A library for the trained model's shape, which all planted checkpoints share."""

    def compiled(precision: Precision) -> Path:
        if precision.is_default:
            (path,) = demo_artifact(precision.quantization).glob("*.so")
            return path
        output = shared / "libraries" / precision.name

        def make() -> None:
            world.build(
                demo_checkpoint,
                target="llvm",
                quantization=precision.quantization,
                output=output,
                compute_dtype=precision.compute_dtype,
                fp32_layers=precision.fp32_layers,
                float32_keys=precision.float32_keys,
                arithmetic=precision.products,
                weights=False,
                **LIBRARY_OPTIONS,
            )

        once(output, make)
        (path,) = output.glob("*/*.so")
        return path

    return compiled
