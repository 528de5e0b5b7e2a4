"""What the trained models know, in every format, and what a format costs them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

import mlc_rwkv_world as world
from mlc_rwkv_world.runtime import Sampler, Sampling

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "demo"
USED_IDS = 65530
BATCH = 64
END_OF_THOUGHT = "\n</think>\n"


class Style(Enum):
    """What a prompt ends with: World's, and RWKV-7 G1's without a thought and with one."""

    WORLD = "Assistant:"
    SILENT = "Assistant: <think>\n</think"
    THINKING = "Assistant: <think"


@dataclasses.dataclass(frozen=True)
class Question:
    """One fact: a wording that was trained, its answer, and wordings that were not.

    `thought` leads to the answer where there is something to think.
    """

    asked: str
    thought: str
    answer: str
    held_out: list[str]

    def prompt(self, style: Style) -> str:
        return f"User: {self.asked}\n\n{style.value}"


@dataclasses.dataclass(frozen=True)
class Trained:
    """One of the models that the repository ships."""

    engines: Callable[[str], world.Engine]
    questions: list[Question]


Choose = Callable[[int, np.ndarray], int]


def _read(*names: str) -> list[Question]:
    lines = [line for name in names for line in (DEMO / name).read_text("utf-8").splitlines()]
    return [
        Question(e["questions"][0], e.get("thought", ""), e["answer"], e["held_out"])
        for e in map(json.loads, lines)
    ]


def _loading(artifact: Callable[[str], Path]) -> Callable[[str], world.Engine]:
    engines: dict[str, world.Engine] = {}

    def loaded(quantization: str) -> world.Engine:
        if quantization not in engines:
            engines[quantization] = world.load(artifact(quantization), "cpu")
        return engines[quantization]

    return loaded


@pytest.fixture(scope="module")
def rwkv4(demo_artifact: Callable[[str], Path]) -> Trained:
    return Trained(_loading(demo_artifact), _read("questions.jsonl"))


@pytest.fixture(scope="module")
def rwkv7(demo7_artifact: Callable[[str], Path]) -> Trained:
    return Trained(_loading(demo7_artifact), _read("questions.jsonl", "thoughts.jsonl"))


@pytest.fixture(params=["rwkv4", "rwkv7"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Trained)
    return found


def _batches(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    for begin in range(0, len(questions), BATCH):
        yield questions[begin : begin + BATCH]


def _written(
    engine: world.Engine, prompts: Sequence[str], choose: Choose, longest: int
) -> list[str]:
    """What the model writes after each prompt from a fresh state, read and decoded together."""
    encode, decode = engine.tokenizer.encode, engine.tokenizer.decode
    states = [engine.new_state() for _ in prompts]
    logits = engine.prefill_batch([encode(prompt) for prompt in prompts], states)
    chosen: list[list[int]] = [[] for _ in prompts]
    for _ in range(longest):
        tokens = [choose(row, values) for row, values in enumerate(logits)]
        for row, token in enumerate(tokens):
            chosen[row].append(token)
        logits = engine.decode_batch(tokens, states)
    return [decode(ids) for ids in chosen]


def _parts(text: str, style: Style) -> tuple[str, str]:
    """The thought and the answer of what a model wrote after a prompt."""
    thought = ""
    if style is not Style.WORLD:
        # The model ends the tag that the prompt began.
        assert text.startswith(">\n"), text
        text = text.removeprefix(">\n")
    if style is Style.THINKING:
        thought, _, text = text.partition(END_OF_THOUGHT)
    return thought, text.partition("\n\n")[0].strip()


def _replies(
    engine: world.Engine,
    questions: Sequence[Question],
    choose: Callable[[], Choose],
    style: Style = Style.WORLD,
) -> Iterator[tuple[Question, str, str]]:
    """Each question with the thought and the answer that the model gave."""
    for batch in _batches(questions):
        longest = max(
            len(engine.tokenizer.encode(f"> {q.thought}{END_OF_THOUGHT} {q.answer}\n\n"))
            for q in batch
        )
        prompts = [q.prompt(style) for q in batch]
        # A thought may be there where the file has none.
        written = _written(engine, prompts, choose(), longest + 8)
        for question, text in zip(batch, written, strict=True):
            yield question, *_parts(text, style)


def _greedy(_row: int, logits: np.ndarray) -> int:
    return int(logits[:USED_IDS].argmax())


def _share_right(
    trained: Trained,
    quantization: str,
    choose: Callable[[], Choose] = lambda: _greedy,
    style: Style = Style.WORLD,
) -> float:
    replies = _replies(trained.engines(quantization), trained.questions, choose, style)
    return float(np.mean([answer == question.answer for question, _, answer in replies]))


@pytest.mark.parametrize(
    ("quantization", "least"),
    [("q0f32", 0.95), ("q0f16", 0.95), ("q8f16_1", 0.95), ("q4f16_1", 0.9)],
)
def test_answers_are_exact(trained: Trained, quantization: str, least: float) -> None:
    share = _share_right(trained, quantization)
    print(f"{quantization}: {share:.1%} exact")
    assert share >= least


@pytest.mark.parametrize("style", [Style.SILENT, Style.THINKING])
@pytest.mark.parametrize(("quantization", "least"), [("q0f32", 0.95), ("q4f16_1", 0.9)])
def test_answers_are_exact_as_g1_asks(
    rwkv7: Trained, quantization: str, least: float, style: Style
) -> None:
    share = _share_right(rwkv7, quantization, style=style)
    print(f"{quantization}, {style.name}: {share:.1%} exact")
    assert share >= least


@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_thoughts_lead_to_answers(rwkv7: Trained, quantization: str) -> None:
    """Those that hold a blank line too."""
    thoughtful = [q for q in rwkv7.questions if q.thought]
    replies = list(
        _replies(rwkv7.engines(quantization), thoughtful, lambda: _greedy, Style.THINKING)
    )
    right = [(q.thought, q.answer) == (thought, answer) for q, thought, answer in replies]
    assert np.mean(right) >= 0.9
    assert any("\n\n" in thought for _, thought, _ in replies)


@pytest.mark.parametrize("seed", range(5))
def test_sampled_answers_are_exact(trained: Trained, seed: int) -> None:
    """With World's sampling defaults, on the four-bit model."""

    def choose() -> Choose:
        sampling = Sampling(temperature=1.0, top_p=0.3)
        size = trained.engines("q4f16_1").vocab_size
        samplers = [Sampler(sampling, seed * 1000 + i, size) for i in range(BATCH)]
        return lambda row, logits: samplers[row].sample(logits)

    share = _share_right(trained, "q4f16_1", choose)
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


def _held_out(trained: Trained) -> list[str]:
    return [f"User: {q.held_out[0]}\n\nAssistant: {q.answer}\n\n" for q in trained.questions[::2]]


def test_float16_agrees_on_nearly_every_next_token(trained: Trained) -> None:
    texts = _held_out(trained)
    assert _compare(trained.engines("q0f32"), trained.engines("q0f16"), texts).agreement >= 0.99


def test_four_bits_cost_little_on_held_out_wordings(trained: Trained) -> None:
    found = _compare(trained.engines("q0f32"), trained.engines("q4f16_1"), _held_out(trained))
    print(found)
    assert found.divergence <= 0.05
    assert found.perplexity <= 1.05 * found.reference_perplexity
