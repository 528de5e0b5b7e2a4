"""Perplexity: the sum over tokens, against logits from the formulas; the command; formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planting import Precision
from support.checkpoints import read_hf
from support.values import run

import mlc_rwkv_world as world
from mlc_rwkv_world.__main__ import main
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.numerics.perplexity import predict

pytestmark = pytest.mark.slow

QUESTIONS = Path(__file__).parents[2] / "demo" / "questions.jsonl"
TEXT = "User: What is the capital of France?\n\nAssistant: The capital of France is Paris.\n\n"
CHINESE = "User: 中国的首都是哪里？\n\nAssistant: 中国的首都是北京。\n\n"


@pytest.fixture(scope="module")
def engine(demo_artifact: Callable[[str], Path]) -> world.Engine:
    return world.load(demo_artifact("q0f32"), "cpu")


def expected_nats(demo_checkpoint: Path, ids: list[int]) -> float:
    _, logits = run(read_hf(demo_checkpoint), [0, *ids[:-1]])
    top = logits.max(-1, keepdims=True)
    probabilities = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(-probabilities[np.arange(len(ids)), ids].sum())


def test_sum_over_tokens(engine: world.Engine, demo_checkpoint: Path) -> None:
    text = TEXT + CHINESE
    ids = engine.tokenizer.encode(text)
    found = predict(engine, text)
    nats = expected_nats(demo_checkpoint, ids)
    assert found.tokens == len(ids)
    assert found.nbytes == len(text.encode())
    assert found.nats == pytest.approx(nats, rel=1e-3)
    assert found.perplexity == pytest.approx(math.exp(nats / len(ids)), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.nbytes, rel=1e-3)


def test_windows_start_afresh(engine: world.Engine, demo_checkpoint: Path) -> None:
    ids = engine.tokenizer.encode(TEXT + CHINESE)
    heard: list[tuple[int, int]] = []
    found = predict(engine, TEXT + CHINESE, window=9, progress=lambda *step: heard.append(step))
    parts = [ids[start : start + 9] for start in range(0, len(ids), 9)]
    nats = sum(expected_nats(demo_checkpoint, part) for part in parts)
    assert found.nats == pytest.approx(nats, rel=1e-3)
    assert heard[-1] == (len(ids), len(ids))
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})


def test_windows_begin_from_a_state(
    engine: world.Engine, demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, read = engine.tokenizer.encode(CHINESE), engine.tokenizer.encode(TEXT)
    state = engine.new_state()
    engine.prefill(read, state)
    before = state.numpy()
    found = predict(engine, CHINESE, state=state)
    _, logits = run(read_hf(demo_checkpoint), [*read, 0, *ids[:-1]])
    rows = logits[len(read) :]
    rows = rows - np.log(np.exp(rows - rows.max()).sum(-1, keepdims=True)) - rows.max()
    assert found.nats == pytest.approx(-rows[np.arange(len(ids)), ids].sum(), rel=1e-3)
    np.testing.assert_array_equal(state.numpy(), before)
    state.save(tmp_path / "state")
    (tmp_path / "text").write_text(CHINESE, encoding="utf-8")
    command = ["perplexity", str(engine.folder), "--text", str(tmp_path / "text"), "--json"]
    assert main([*command, "--state", str(tmp_path / "state")]) == 0
    assert json.loads(capsys.readouterr().out)["nats"] == pytest.approx(found.nats)
    assert main([*command, "--state", str(tmp_path / "text")]) == 8
    assert "is no state file" in capsys.readouterr().err


def test_nothing_to_predict(engine: world.Engine) -> None:
    with pytest.raises(UsageError, match="no text"):
        predict(engine, "")
    with pytest.raises(UsageError, match="--window 0"):
        predict(engine, "a", window=0)


def test_formats_in_order(demo_artifact: Callable[[str], Path]) -> None:
    """Eight bits cost nothing that shows, four bits little, on what the model knows."""
    found = {
        name: predict(world.load(demo_artifact(name), "cpu"), TEXT + CHINESE).bits_per_byte
        for name in ("q0f32", "q8f16_1", "q4f16_1")
    }
    assert found["q8f16_1"] == pytest.approx(found["q0f32"], rel=0.01)
    assert found["q4f16_1"] == pytest.approx(found["q0f32"], rel=0.2)
    assert found["q4f16_1"] != found["q0f32"]


def test_rounded_inputs_cost_little(
    demo_artifact: Callable[[str], Path], library: Callable[[Precision], Path]
) -> None:
    """A CPU that multiplies bytes predicts as one that does not, within a hundredth."""
    if not multiplies_bytes(resolve("llvm").target):
        pytest.skip("this CPU multiplies no bytes")
    folder = demo_artifact("q4f16_1")
    entries = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    turns = [f"User: {e['questions'][-1]}\n\nAssistant: {e['answer']}\n\n" for e in entries[:40]]
    text = "".join(turns)
    rounded = world.load(folder, "cpu")
    assert "int8" in rounded.metadata.arithmetic.values()
    exact_library = library(Precision("q4f16_1", compute_dtype="float32"))
    exact = world.load(folder, "cpu", model_lib=exact_library)
    assert set(exact.metadata.arithmetic.values()) == {"float32"}
    found, expected = (predict(engine, text, window=64) for engine in (rounded, exact))
    print(f"bytes: {found}\nfloat32: {expected}")
    assert found.nats != expected.nats
    assert found.nats == pytest.approx(expected.nats, rel=0.01)


def test_overflow_is_infinite(
    planted_params: Callable[[str, int, str], Path], library: Callable[[Precision], Path]
) -> None:
    folder = planted_params("square", 0, "q0f16")
    broken = world.load(folder, "cpu", model_lib=library(Precision("q0f16")))
    assert predict(broken, TEXT).perplexity == math.inf
    cured = world.load(folder, "cpu", model_lib=library(Precision("q0f16", "0")))
    assert predict(cured, TEXT).perplexity < 10


def test_command(
    demo_artifact: Callable[[str], Path],
    engine: world.Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT + CHINESE, encoding="utf-8")
    artifact = str(demo_artifact("q0f32"))
    assert main(["perplexity", artifact, "--text", str(text)]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert main(["perplexity", artifact, "--text", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nats"] == pytest.approx(predict(engine, TEXT + CHINESE).nats)


def test_command_on_a_checkpoint(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    arguments = ["perplexity", str(demo_checkpoint), "--text", str(text), "--json"]
    assert main([*arguments, "--quantization", "q8f16_1"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] < 10


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"abc\xff", "is not UTF-8")],
)
def test_command_refuses(
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert main(["perplexity", str(demo_artifact("q0f32")), "--text", str(text)]) == 2
    assert message in capsys.readouterr().err


def test_quantization_is_for_checkpoints(
    demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    arguments = ["perplexity", str(demo_artifact("q0f32")), "--text", str(text)]
    assert main([*arguments, "--quantization", "q8f16_1"]) == 2
    assert "is built already" in capsys.readouterr().err
