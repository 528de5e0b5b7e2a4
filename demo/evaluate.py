"""How well the model answers, and how far each format moves it: `python demo/evaluate.py`.

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
from data import PRIMER, Question, Vocabulary, answered, asked, conversation, read_questions
from formats import FORMATS, Format
from rwkv4 import Cast, Rwkv4
from torch import Tensor

FOLDER = Path(__file__).parent
TEMPERATURE, TOP_P, PRESENCE, FREQUENCY, PENALTY_DECAY = 1.0, 0.3, 0.4, 0.4, 0.996
SEEDS = (1, 2, 3, 4, 5)

Choose = Callable[[Tensor], Tensor]


@torch.no_grad()
def generate(
    model: Rwkv4, cast: Cast, prompts: list[list[int]], length: int, choose: Choose
) -> tuple[list[list[int]], Tensor]:
    """Answer all prompts (compact tokens) at once from fresh states.

    Returns `length` tokens for each prompt and the lead of the best logit over the second
    [len(prompts), length]. `choose` maps logits [B, used + 1] to the next tokens [B].
    """
    state = model.new_state(len(prompts))
    logits = torch.zeros(len(prompts), model.used + 1)
    for t in range(max(map(len, prompts))):
        # A prompt that has ended waits, with its state and logits as they were.
        active = [i for i, prompt in enumerate(prompts) if t < len(prompt)]
        tokens = torch.tensor([prompts[i][t] for i in active])
        part = state[:, active]
        logits[active] = model.step(tokens, part, cast)
        state[:, active] = part
    chosen, leads = [], []
    for _ in range(length):
        best = logits.topk(2, -1).values
        leads.append(best[:, 0] - best[:, 1])
        tokens = choose(logits)
        chosen.append(tokens)
        logits = model.step(tokens, state, cast)
    return torch.stack(chosen, 1).tolist(), torch.stack(leads, 1)


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


class Sampler:
    """World's default sampling, one occurrence table for each row."""

    def __init__(self, model: Rwkv4, seed: int) -> None:
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
    """Prompts (compact tokens), the answers that are right, and the answers' lengths in tokens."""

    prompts: list[list[int]]
    answers: list[str]
    lengths: list[int]

    def grade(self, vocabulary: Vocabulary, chosen: list[list[int]]) -> float:
        """The share of answers that are exact, the blank line that ends them included."""
        right = [
            vocabulary.decode(tokens).startswith(answered(answer))
            for tokens, answer in zip(chosen, self.answers, strict=True)
        ]
        return sum(right) / len(right)


def exams(vocabulary: Vocabulary, questions: list[Question]) -> dict[str, Exam]:
    """The first wordings fresh, after the primer and as a third turn; all; and those held out."""

    def earlier(i: int) -> str:
        return conversation(*((q.questions[0], q.answer) for q in (questions[i - 7], questions[i])))

    numbered = list(enumerate(questions))
    asks = {
        "fresh": [(asked(q.questions[0]), q) for q in questions],
        "primer": [(conversation(PRIMER) + asked(q.questions[0]), q) for q in questions],
        "third turn": [(earlier(i - 100) + asked(q.questions[0]), q) for i, q in numbered],
        "all trained": [(asked(text), q) for q in questions for text in q.questions],
        "held out": [(asked(text), q) for q in questions for text in q.held_out],
    }
    return {
        name: Exam(
            [vocabulary.encode(text) for text, _ in pairs],
            [q.answer for _, q in pairs],
            [len(vocabulary.encode(answered(q.answer))) for _, q in pairs],
        )
        for name, pairs in asks.items()
    }


@dataclass(frozen=True)
class Drift:
    """Over text that was not trained: mean KL divergence from float32 (nats) and perplexity."""

    divergence: float
    perplexity: float
    answer_divergence: float
    answer_perplexity: float


@torch.no_grad()
def drift(
    reference: Rwkv4, model: Rwkv4, cast: Cast, vocabulary: Vocabulary, questions: list[Question]
) -> Drift:
    """Compare the predictions of every token of each held-out question and its answer."""
    texts = [
        (vocabulary.encode(asked(text)), vocabulary.encode(answered(q.answer)))
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


def sampled(model: Rwkv4, form: Format, exam: Exam, vocabulary: Vocabulary) -> float:
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


def report(model: Rwkv4, vocabulary: Vocabulary, questions: list[Question]) -> None:
    """Print what share of answers is exact and what each format costs, a row for each format."""
    papers = exams(vocabulary, questions)
    reference = FORMATS[0].apply(model)
    print(
        "exact answers, greedy but for `sampled`; KL and perplexity of held-out text, its answers"
    )
    columns = (*papers, "sampled", "KL", "ppl", "answer KL", "answer ppl")
    print(f"{'':8}" + "".join(f"{column:>12}" for column in columns))
    for form in FORMATS:
        held = form.apply(model)
        grades = []
        for name, exam in papers.items():
            chosen, leads = generate(held, form.cast, exam.prompts, max(exam.lengths), greedy)
            grades.append(exam.grade(vocabulary, chosen))
            if form is FORMATS[0]:
                print(f"lead of the best logit, {name}: {decisiveness(exam, leads)}")
        grades.append(sampled(held, form, papers["fresh"], vocabulary))
        d = drift(reference, held, form.cast, vocabulary, questions)
        figures = (d.divergence, d.perplexity, d.answer_divergence, d.answer_perplexity)
        cells = [f"{grade:12.1%}" for grade in grades] + [f"{figure:12.5f}" for figure in figures]
        print(f"{form.name:8}" + "".join(cells), flush=True)


def load(path: Path) -> Rwkv4:
    """The committed model, compact."""
    tensors = {name: torch.from_numpy(array) for name, array in unpack.read(path).items()}
    used = tensors.pop("used_tokens").shape[0]
    model = Rwkv4(used, tensors["rwkv.ln_out.weight"].shape[0], unpack.layers(tensors))
    names = exported_names(model)
    for name, parameter in model.named_parameters():
        parameter.data = tensors[names[name]].float().view_as(parameter)
    return model


def exported_names(model: Rwkv4) -> dict[str, str]:
    """Hugging Face names of the parameters."""
    names = {}
    for name, parameter in model.named_parameters():
        stored = f"{name}.weight" if parameter.ndim == 2 else name
        stored = stored.replace("pre_ln", "blocks.0.pre_ln")
        names[name] = stored if name == "head" else f"rwkv.{stored}"
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the trained model in every format.")
    parser.add_argument("--model", type=Path, default=unpack.MODEL)
    parser.add_argument("--questions", type=Path, default=FOLDER / "questions.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    questions = read_questions(arguments.questions)
    report(load(arguments.model), Vocabulary(questions), questions)


if __name__ == "__main__":
    main()
