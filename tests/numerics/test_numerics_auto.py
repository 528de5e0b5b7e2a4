"""`--fp32-layers auto`: what it chooses, what it writes down, and that the choice is right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from planting import Precision, answers

import mlc_rwkv_world as world
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize(
    "case, operation",
    [
        ("key", "attention.key gives infinity"),
        ("square", "feed_forward.key square gives infinity"),
        ("value", "attention.wkv multiply gives infinity"),
        ("bump", "attention.output gives infinity"),
    ],
)
def test_choice(
    planted_checkpoint: Callable[[str, int], Path],
    library: Callable[[Precision], Path],
    tmp_path: Path,
    case: str,
    layer: int,
    quantization: str,
    operation: str,
) -> None:
    artifact = world.build(
        planted_checkpoint(case, layer),
        target="llvm",
        quantization=quantization,
        output=tmp_path,
        fp32_layers="auto",
        float32_keys=case != "key",
        library=False,
    )
    assert artifact.fp32_layers == (layer,)
    config = json.loads((artifact.params / CHAT_CONFIG).read_text())["model_config"]
    assert config["fp32_layers"] == [layer]
    assert config["fp32_reasons"][0].startswith(f"block {layer}: {operation}")
    assert "prompts" in config["fp32_reasons"][-1]
    assert any(f"--fp32-layers {layer}: block {layer}" in note for note in artifact.notes)
    right = answers(artifact.folder, library(Precision(quantization, compute_dtype="float32")))
    assert any("Paris" in text for text in right.texts)
    chosen = Precision(quantization, str(layer), float32_keys=case != "key")
    assert answers(artifact.folder, library(chosen)) == right


def test_rounded_inputs(planted_checkpoint: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Built for a CPU as it comes, a format that multiplies bytes is measured with bytes."""
    source = planted_checkpoint("bump", 2)
    build = partial(
        world.build, source, target="llvm", output=tmp_path, fp32_layers="auto", stock=False
    )
    artifact = build(quantization="q4f32_1", arithmetic="float32", library=False)
    assert artifact.fp32_layers == ()
    if not multiplies_bytes(resolve("llvm").target):
        pytest.skip("this CPU multiplies no bytes")
    artifact = build(quantization="q4f32_1", prefill_chunk_size=64)
    assert artifact.fp32_layers == (2,)
    assert re.search(r"block 2: attention.output loses \d\d% where a CPU", artifact.notes[0])
    found = answers(artifact.folder, artifact.libraries[0])
    assert "Paris" in found.texts[0]


def test_a_healthy_model_needs_none(demo_checkpoint: Path, tmp_path: Path) -> None:
    """And the library's metadata says what was measured."""
    artifact = world.build(
        demo_checkpoint,
        target="llvm",
        quantization="q0f16",
        output=tmp_path,
        fp32_layers="auto",
        prefill_chunk_size=16,
        stock=False,
    )
    assert artifact.fp32_layers == ()
    ours = json.loads(str(world.load(artifact.folder).library.machine["_metadata"]()))["rwkv_world"]
    assert ours["fp32_layers"] == []
    assert "nothing comes near the end of float16's range" in ours["fp32_reasons"][0]


def test_float32_formats_are_not_measured(demo_checkpoint: Path, tmp_path: Path) -> None:
    artifact = world.build(
        demo_checkpoint,
        target="llvm",
        quantization="q4f32_1",
        output=tmp_path,
        fp32_layers="auto",
        library=False,
    )
    assert artifact.fp32_layers == ()
    assert "computes in float32" in artifact.notes[0]
