from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from planting import LIBRARY_OPTIONS, Precision
from support.checkpoints import read_hf, write_hf_safetensors
from support.overflows import CASES

import mlc_rwkv_world as world


@pytest.fixture(scope="session")
def planted_checkpoint(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """`planted_checkpoint(case, layer)`: the trained model with one of `overflows.CASES`."""
    root = tmp_path_factory.mktemp("planted")
    tensors = read_hf(demo_checkpoint)

    @cache
    def planted(case: str, layer: int) -> Path:
        changed = CASES[case].plant(tensors, layer)
        return write_hf_safetensors(root / f"{case}{layer}", changed)

    return planted


@pytest.fixture(scope="session")
def planted_params(
    planted_checkpoint: Callable[[str, int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int, str], Path]:
    """`planted_params(case, layer, quantization)`: an artifact's folder without a library."""
    output = tmp_path_factory.mktemp("converted")

    @cache
    def converted(case: str, layer: int, quantization: str) -> Path:
        source = planted_checkpoint(case, layer)
        return world.build(
            source, target="llvm", quantization=quantization, output=output, library=False
        ).folder

    return converted


@pytest.fixture(scope="session")
def library(
    demo_checkpoint: Path,
    demo_artifact: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Precision], Path]:
    """A library for the trained model's shape, which all planted checkpoints share."""
    output = tmp_path_factory.mktemp("libraries")

    @cache
    def compiled(precision: Precision) -> Path:
        if precision.compute_dtype == "float32":
            (path,) = demo_artifact(precision.quantization).glob("*.so")
            return path
        artifact = world.build(
            demo_checkpoint,
            target="llvm",
            quantization=precision.quantization,
            output=output / precision.name,
            compute_dtype=precision.compute_dtype,
            fp32_layers=precision.fp32_layers,
            float32_keys=precision.float32_keys,
            weights=False,
            **LIBRARY_OPTIONS,
        )
        return artifact.libraries[0]

    return compiled
