"""What the trained model knows, in every format, and what a format costs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import mlc_rwkv_world as world
from mlc_rwkv_world.runtime import Sampler, Sampling

pytestmark = pytest.mark.slow

QUESTIONS = Path(__file__).parents[2] / "demo" / "questions.jsonl"
USED_IDS = 65530
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Question:
    """One fact: a wording that was trained, its answer, and wordings that were not."""

    asked: str
    answer: str
    held_out: list[str]

    @property
    def prompt(self) -> str:
        return f"User: {self.asked}\n\nAssistant:"


Load = Callable[[str], world.Engine]
Choose = Callable[[int, np.ndarray], int]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    entries = map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines())
    return [Question(e["questions"][0], e["answer"], e["held_out"]) for e in entries]


@pytest.fixture(scope="module")
def load(demo_artifact: Callable[[str], Path]) -> Load:
    engines: dict[str, world.Engine] = {}

    def loaded(quantization: str) -> world.Engine:
        if quantization not in engines:
            engines[quantization] = world.load(demo_artifact(quantization), "cpu")
        return engines[quantization]

    return loaded


def _batches(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    for begin in range(0, len(questions), BATCH):
        yield questions[begin : begin + BATCH]


def _answers(engine: world.Engine, questions: Sequence[Question], choose: Choose) -> list[str]:
    """The answer to each question from a fresh state, read and decoded together."""
    encode, decode = engine.tokenizer.encode, engine.tokenizer.decode
    longest = max(len(encode(f" {q.answer}\n\n")) for q in questions) + 2
    states = [engine.new_state() for _ in questions]
    logits = engine.prefill_batch([encode(q.prompt) for q in questions], states)
    chosen: list[list[int]] = [[] for _ in questions]
    for _ in range(longest):
        tokens = [choose(row, values) for row, values in enumerate(logits)]
        for row, token in enumerate(tokens):
            chosen[row].append(token)
        logits = engine.decode_batch(tokens, states)
    return [decode(ids).partition("\n\n")[0].strip() for ids in chosen]


def _greedy(_row: int, logits: np.ndarray) -> int:
    return int(logits[:USED_IDS].argmax())


def _share_right(
    engine: world.Engine, questions: Sequence[Question], choose: Callable[[], Choose]
) -> float:
    right = 0
    for batch in _batches(questions):
        answers = _answers(engine, batch, choose())
        right += sum(a == q.answer for a, q in zip(answers, batch, strict=True))
    return right / len(questions)


@pytest.mark.parametrize(
    ("quantization", "least"),
    [("q0f32", 0.95), ("q0f16", 0.95), ("q8f16_1", 0.95), ("q4f16_1", 0.9)],
)
def test_answers_are_exact(
    load: Load, questions: list[Question], quantization: str, least: float
) -> None:
    share = _share_right(load(quantization), questions, lambda: _greedy)
    print(f"{quantization}: {share:.1%} exact")
    assert share >= least


@pytest.mark.parametrize("seed", range(5))
def test_sampled_answers_are_exact(load: Load, questions: list[Question], seed: int) -> None:
    """With World's sampling defaults, on the four-bit model."""
    engine = load("q4f16_1")

    def choose() -> Choose:
        sampling = Sampling(temperature=1.0, top_p=0.3)
        samplers = [Sampler(sampling, seed * 1000 + i, engine.vocab_size) for i in range(BATCH)]
        return lambda row, logits: samplers[row].sample(logits)

    share = _share_right(engine, questions, choose)
    print(f"seed {seed}: {share:.1%} exact")
    assert share >= 0.85


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two engines over every token of held-out text."""

    agreement: float
    divergence: float
    perplexity: float
    reference_perplexity: float


def _log_probs(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))


def _compare(reference: world.Engine, engine: world.Engine, texts: Sequence[str]) -> Comparison:
    agree, divergences, losses, reference_losses = [], [], [], []
    for begin in range(0, len(texts), BATCH):
        ids = [engine.tokenizer.encode(text) for text in texts[begin : begin + BATCH]]
        ours = [engine.new_state() for _ in ids]
        theirs = [reference.new_state() for _ in ids]
        for position in range(max(map(len, ids)) - 1):
            alive = [b for b, row in enumerate(ids) if position + 1 < len(row)]
            tokens = [ids[b][position] for b in alive]
            following = [ids[b][position + 1] for b in alive]
            p = _log_probs(reference.decode_batch(tokens, [theirs[b] for b in alive]))
            q = _log_probs(engine.decode_batch(tokens, [ours[b] for b in alive]))
            agree += list(p.argmax(axis=1) == q.argmax(axis=1))
            divergences += list((np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64))
            rows = np.arange(len(alive))
            losses += list(-q[rows, following])
            reference_losses += list(-p[rows, following])
    return Comparison(
        float(np.mean(agree)),
        float(np.mean(divergences)),
        float(np.exp(np.mean(losses))),
        float(np.exp(np.mean(reference_losses))),
    )


@pytest.fixture(scope="module")
def held_out(questions: list[Question]) -> list[str]:
    return [f"User: {q.held_out[0]}\n\nAssistant: {q.answer}\n\n" for q in questions[::2]]


def test_float16_agrees_on_nearly_every_next_token(load: Load, held_out: list[str]) -> None:
    assert _compare(load("q0f32"), load("q0f16"), held_out).agreement >= 0.99


def test_four_bits_cost_little_on_held_out_wordings(load: Load, held_out: list[str]) -> None:
    found = _compare(load("q0f32"), load("q4f16_1"), held_out)
    print(found)
    assert found.divergence <= 0.05
    assert found.perplexity <= 1.05 * found.reference_perplexity
