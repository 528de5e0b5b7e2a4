"""How well a model answers, and how far each format moves it: `python demo/evaluate.py`.

The formats are emulated in PyTorch, so that a training run can be judged where it is made.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import unpack
from data import PRIMER, Question, Style, Vocabulary, answered, asked, conversation, read_questions
from formats import FORMATS, LOW_RANKS, Format
from language_model import Cast, LanguageModel
from torch import Tensor
from versions import VERSIONS, Version

TEMPERATURE, TOP_P, PRESENCE, FREQUENCY, PENALTY_DECAY = 1.0, 0.3, 0.4, 0.4, 0.996
SEEDS = (1, 2, 3, 4, 5)

Choose = Callable[[Tensor], Tensor]


@torch.no_grad()
def generate(
    model: LanguageModel, cast: Cast, prompts: list[list[int]], length: int, choose: Choose
) -> tuple[list[list[int]], Tensor]:
    """Answer all prompts (compact tokens) at once from fresh states.

    Returns `length` tokens for each prompt and the lead of the best logit over the second
    [len(prompts), length]. `choose` maps logits [B, used + 1] to the next tokens [B].
    """
    # The longest first: those that go on are then the first rows, and need no copy.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    state = model.new_state(len(prompts))
    logits = torch.zeros(len(prompts), model.used + 1)
    for t in range(len(prompts[order[0]])):
        active = [prompts[i][t] for i in order if t < len(prompts[i])]
        # A prompt that has ended waits, with its state and logits as they were.
        logits[: len(active)] = model.step(torch.tensor(active), state[:, : len(active)], cast)
    chosen, leads = [], []
    for _ in range(length):
        best = logits.topk(2, -1).values
        leads.append(best[:, 0] - best[:, 1])
        tokens = choose(logits)
        chosen.append(tokens)
        logits = model.step(tokens, state, cast)
    rows = torch.tensor(order).argsort()
    return torch.stack(chosen, 1)[rows].tolist(), torch.stack(leads, 1)[rows]


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


class Sampler:
    """World's default sampling, one occurrence table for each row."""

    def __init__(self, model: LanguageModel, seed: int) -> None:
        self.count = model.count
        self.random = torch.Generator().manual_seed(seed)
        self.occurrence: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.occurrence is None:
            self.occurrence = torch.zeros_like(logits)
        seen = self.occurrence > 0
        logits = logits - torch.where(seen, PRESENCE + FREQUENCY * self.occurrence, 0.0)
        probabilities = torch.softmax(logits / TEMPERATURE + self.count, -1)
        ordered = probabilities.sort(-1, descending=True).values
        first = (ordered.cumsum(-1) > TOP_P).int().argmax(-1, keepdim=True)
        probabilities[probabilities < ordered.gather(-1, first)] = 0
        tokens = torch.multinomial(probabilities, 1, generator=self.random)
        self.occurrence *= PENALTY_DECAY
        self.occurrence.scatter_add_(-1, tokens, torch.ones_like(tokens, dtype=torch.float32))
        return tokens[:, 0]


@dataclass(frozen=True)
class Exam:
    """Prompts (compact tokens), what the model is to write after each, and that in tokens' number.

    `answers` include the blank line that ends them, and a thought where one is asked for.
    """

    prompts: list[list[int]]
    answers: list[str]
    lengths: list[int]

    def grade(self, vocabulary: Vocabulary, chosen: list[list[int]]) -> float:
        """The share of answers that are exact."""
        right = [
            vocabulary.decode(tokens).startswith(answer)
            for tokens, answer in zip(chosen, self.answers, strict=True)
        ]
        return sum(right) / len(right)


def exams(
    vocabulary: Vocabulary, questions: list[Question], styles: tuple[Style, ...]
) -> dict[str, Exam]:
    """The first wordings fresh, after the primer and as a third turn; all; and those held out.

    These in the World format; the first and the held-out wordings in the other styles too.
    """

    def earlier(i: int) -> str:
        return conversation(questions[i - 7], questions[i])

    numbered = list(enumerate(questions))
    firsts = [(q.questions[0], q) for q in questions]
    held_out = [(text, q) for q in questions for text in q.held_out]
    world = Style.WORLD
    asks = {
        "fresh": (world, firsts, [""] * len(questions)),
        "primer": (world, firsts, [conversation(PRIMER)] * len(questions)),
        "third turn": (world, firsts, [earlier(i - 100) for i, _ in numbered]),
        "all trained": (world, [(text, q) for q in questions for text in q.questions], None),
        "held out": (world, held_out, None),
    }
    for style in Style:
        if style in styles and style is not world:
            name = style.name.lower()
            asks[name] = (style, firsts, None)
            asks[f"held out {name}"] = (style, held_out, None)
    papers = {}
    for name, (style, pairs, before) in asks.items():
        answers = [answered(q, style) for _, q in pairs]
        papers[name] = Exam(
            [
                vocabulary.encode((before[i] if before else "") + asked(text, style))
                for i, (text, _) in enumerate(pairs)
            ],
            answers,
            [len(vocabulary.encode(answer)) for answer in answers],
        )
    return papers


@dataclass(frozen=True)
class Drift:
    """Over text that was not trained: mean KL divergence from float32 (nats) and perplexity."""

    divergence: float
    perplexity: float
    answer_divergence: float
    answer_perplexity: float


@torch.no_grad()
def drift(
    reference: LanguageModel,
    model: LanguageModel,
    cast: Cast,
    vocabulary: Vocabulary,
    questions: list[Question],
) -> Drift:
    """Compare the predictions of every token of each held-out question and its answer."""
    texts = [
        (vocabulary.encode(asked(text)), vocabulary.encode(answered(q)))
        for q in questions
        for text in q.held_out
    ]
    rows = [question + answer for question, answer in texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    place = torch.arange(longest - 1)
    ends = torch.tensor([len(row) for row in rows])
    starts = torch.tensor([len(question) for question, _ in texts])
    everywhere = place < ends[:, None] - 1
    in_answer = everywhere & (place >= starts[:, None] - 1)
    reference_state, state = reference.new_state(len(rows)), model.new_state(len(rows))
    divergences, losses = [], []
    for t in range(longest - 1):
        p = reference.log_probs(reference.step(tokens[:, t], reference_state))
        q = model.log_probs(model.step(tokens[:, t], state, cast))
        divergences.append((torch.exp(p + model.count) * (p - q)).sum(-1))
        losses.append(-q.gather(-1, tokens[:, t + 1, None])[:, 0])
    divergence, loss = torch.stack(divergences, 1), torch.stack(losses, 1)
    return Drift(
        divergence[everywhere].mean().item(),
        math.exp(loss[everywhere].mean().item()),
        divergence[in_answer].mean().item(),
        math.exp(loss[in_answer].mean().item()),
    )


def sampled(model: LanguageModel, form: Format, exam: Exam, vocabulary: Vocabulary) -> float:
    """The share of exact answers over all seeds."""
    grades = []
    for seed in SEEDS:
        choose = Sampler(model, seed)
        chosen, _ = generate(model, form.cast, exam.prompts, max(exam.lengths), choose)
        grades.append(exam.grade(vocabulary, chosen))
    return sum(grades) / len(grades)


def decisiveness(exam: Exam, leads: Tensor) -> str:
    """How far the best logit leads at the closest call of each answer."""
    closest = torch.tensor(
        [row[:length].min() for row, length in zip(leads, exam.lengths, strict=True)]
    )
    return (
        f"least {closest.min():.3f}, median {closest.median():.2f}, "
        f"under 2 in {(closest < 2).float().mean():.1%}, "
        f"under 0.001 in {(closest < 1e-3).float().mean():.1%}"
    )


def report(
    model: LanguageModel,
    vocabulary: Vocabulary,
    questions: list[Question],
    styles: tuple[Style, ...],
) -> None:
    """Print what share of answers is exact and what each format costs."""
    papers = exams(vocabulary, questions, styles)
    reference = FORMATS[0].apply(model)
    low_rank = any("_lora." in name for name, _ in model.named_parameters())
    for form in FORMATS + (LOW_RANKS if low_rank else ()):
        print(form.name)
        held = form.apply(model)
        d = drift(reference, held, form.cast, vocabulary, questions)
        print(f"  held out, all tokens: KL {d.divergence:.5f}, perplexity {d.perplexity:.4f}")
        print(f"  answers only: KL {d.answer_divergence:.5f}, perplexity {d.answer_perplexity:.4f}")
        for name, exam in papers.items():
            chosen, leads = generate(held, form.cast, exam.prompts, max(exam.lengths), greedy)
            print(f"  {name}: {exam.grade(vocabulary, chosen):.1%} exact", flush=True)
            if form is FORMATS[0]:
                print(f"    lead of the best logit: {decisiveness(exam, leads)}")
        print(
            f"  sampled: {sampled(held, form, papers['fresh'], vocabulary):.1%} exact", flush=True
        )


def load(version: Version, path: Path) -> LanguageModel:
    """A packed model, compact."""
    tensors = unpack.read(path)
    used = tensors["used_tokens"].shape[0]
    layout = unpack.layout(tensors)
    model = version.model(used, layout.size(tensors), layout.layers(tensors))
    for name, parameter in model.named_parameters():
        stored, _ = model.stored(name)
        parameter.data = torch.from_numpy(tensors[stored]).float().view_as(parameter)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a trained model in every format.")
    parser.add_argument("--version", choices=VERSIONS, required=True)
    parser.add_argument("--model", type=Path, help="the repository's own file by default")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    version = VERSIONS[arguments.version]
    questions = read_questions(*version.questions)
    vocabulary = Vocabulary(questions, version.styles)
    model = load(version, arguments.model or version.file)
    report(model, vocabulary, questions, version.styles)


if __name__ == "__main__":
    main()
