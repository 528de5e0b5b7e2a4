"""Overflows planted in the trained model: what float16 makes of them, and what cures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planting import Answers, Precision, answers
from support.checkpoints import read_hf
from support.overflows import CASES
from support.values import run

import mlc_rwkv_world as world
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.versions.precision import FLOAT16

PROMPT = "User: Which one is not like the others: apple, pear?\n\nAssistant:"

pytestmark = pytest.mark.slow

Params = Callable[[str, int, str], Path]
Libraries = Callable[[Precision], Path]


@pytest.fixture(scope="module")
def ask(planted_params: Params, library: Libraries) -> Callable[[str, int, Precision], Answers]:
    def asked(case: str, layer: int, precision: Precision) -> Answers:
        return answers(planted_params(case, layer, precision.quantization), library(precision))

    return asked


Ask = Callable[[str, int, Precision], Answers]


@pytest.mark.parametrize("case, block", [("key", 0), ("square", 2), ("value", 0), ("bump", 2)])
def test_reference_breaks_where_the_library_does(
    planted_checkpoint: Callable[[str, int], Path],
    planted_params: Params,
    library: Libraries,
    case: str,
    block: int,
) -> None:
    """Token by token: the same logits are finite, and those are equal within float16's steps."""
    keys = case != "key"
    chosen = library(Precision("q0f16", float32_keys=keys))
    engine = world.load(planted_params(case, block, "q0f16"), "cpu", model_lib=chosen)
    ids = [int(token) for token in engine.encode(PROMPT)]
    state = engine.new_state()
    compiled = np.stack([engine.decode(token, state) for token in ids])
    tensors = read_hf(planted_checkpoint(case, block))
    blocks, logits = run(tensors, ids, FLOAT16, float32_keys=keys)
    finite = np.isfinite(logits).all(axis=1)
    assert not finite.all()
    np.testing.assert_array_equal(np.isfinite(compiled).all(axis=1), finite)
    np.testing.assert_allclose(compiled[finite], logits[finite], rtol=0, atol=0.1)
    bad = [name for name, values in blocks[block].items() if not np.isfinite(values).all()]
    assert bad[0] == CASES[case].operation


def broken(found: Answers, right: Answers) -> bool:
    return not found.finite or found.texts != right.texts


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("case", ["square", "value", "bump"])
def test_first_block(ask: Ask, case: str, quantization: str) -> None:
    right = ask(case, 0, Precision(quantization, compute_dtype="float32"))
    assert right.finite
    assert any("Paris" in text for text in right.texts)
    assert broken(ask(case, 0, Precision(quantization)), right)
    assert ask(case, 0, Precision(quantization, "0")) == right


def test_rounded_inputs(ask: Ask) -> None:
    """A CPU that multiplies bytes loses what stands beside the bump, but in chosen blocks."""
    right = ask("bump", 0, Precision("q4f16_1", compute_dtype="float32"))
    if not multiplies_bytes(resolve("llvm").target):
        pytest.skip("this CPU multiplies no bytes")
    bytes_ = Precision("q4f16_1", compute_dtype="float32", arithmetic="auto")
    assert broken(ask("bump", 0, bytes_), right)
    assert ask("bump", 0, dataclasses.replace(bytes_, fp32_layers="0")) == right


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
def test_keys(ask: Ask, quantization: str) -> None:
    """Float32 out of att.key and att.value cures it alone, and so does the block in float32."""
    right = ask("key", 0, Precision(quantization, compute_dtype="float32"))
    assert right.finite
    assert any("Paris" in text for text in right.texts)
    assert broken(ask("key", 0, Precision(quantization, float32_keys=False)), right)
    assert ask("key", 0, Precision(quantization)) == right
    assert ask("key", 0, Precision(quantization, "0", float32_keys=False)) == right


@pytest.mark.parametrize("case", ["square", "value", "bump"])
def test_third_block(ask: Ask, case: str) -> None:
    right = ask(case, 2, Precision("q0f16", compute_dtype="float32"))
    assert any("Paris" in text for text in right.texts)
    assert broken(ask(case, 2, Precision("q0f16")), right)
    assert broken(ask(case, 2, Precision("q0f16", "0")), right)
    assert ask(case, 2, Precision("q0f16", "2")) == right


def test_residual_that_leaves_its_block(ask: Ask) -> None:
    """Control: one block in float32 does not help, all from there on do."""
    right = ask("leave", 0, Precision("q0f16", compute_dtype="float32"))
    assert any("Paris" in text for text in right.texts)
    assert broken(ask("leave", 0, Precision("q0f16")), right)
    assert broken(ask("leave", 0, Precision("q0f16", "0")), right)
    assert ask("leave", 0, Precision("q0f16", "all")) == right
