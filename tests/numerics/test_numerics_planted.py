"""Overflows planted in the trained model: what float16 makes of them, and what cures them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planting import Answers, Precision, answers

Params = Callable[[str, int, str], Path]
Libraries = Callable[[Precision], Path]


@pytest.fixture(scope="module")
def ask(planted_params: Params, library: Libraries) -> Callable[[str, int, Precision], Answers]:
    def asked(case: str, layer: int, precision: Precision) -> Answers:
        return answers(planted_params(case, layer, precision.quantization), library(precision))

    return asked


Ask = Callable[[str, int, Precision], Answers]


def broken(found: Answers, right: Answers) -> bool:
    return not found.finite or found.texts != right.texts


_BUMP_IN_4_BITS = pytest.param(
    "bump",
    "q4f16_1",
    marks=pytest.mark.xfail(reason="the packed CPU products lose what stands beside the bump"),
)


@pytest.mark.parametrize(
    ("case", "quantization"),
    [
        *(("square", quantization) for quantization in ("q0f16", "q4f16_1")),
        *(("value", quantization) for quantization in ("q0f16", "q4f16_1")),
        ("bump", "q0f16"),
        _BUMP_IN_4_BITS,
    ],
)
def test_first_block(ask: Ask, case: str, quantization: str) -> None:
    right = ask(case, 0, Precision(quantization, compute_dtype="float32"))
    assert right.finite
    assert any("Paris" in text for text in right.texts)
    assert broken(ask(case, 0, Precision(quantization)), right)
    assert ask(case, 0, Precision(quantization, "0")) == right


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
def test_keys(ask: Ask, quantization: str) -> None:
    """Float32 out of att.key and att.value cures it alone."""
    right = ask("key", 0, Precision(quantization, compute_dtype="float32"))
    assert right.finite
    assert any("Paris" in text for text in right.texts)
    assert broken(ask("key", 0, Precision(quantization, float32_keys=False)), right)
    assert ask("key", 0, Precision(quantization)) == right


def test_keys_in_a_block_of_float32(ask: Ask) -> None:
    right = ask("key", 0, Precision("q0f16", compute_dtype="float32"))
    assert ask("key", 0, Precision("q0f16", "0", float32_keys=False)) == right


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
