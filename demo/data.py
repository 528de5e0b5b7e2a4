"""Questions, conversations as World and G1 write them, and batches of compact tokens."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from mlc_rwkv_world.tokenizer import END_OF_TEXT, WorldTokenizer

# Of tokens in the loss. No model is to learn how often a prompt opens a thought: it would lean to
# opening one by itself.
ANSWER_WEIGHT, QUESTION_WEIGHT, OPENING_WEIGHT = 1.0, 0.1, 0.0
# What a model thinks of a question that needs no thought, by language.
KNOWN = {"en": "I know this one.", "zh": "这个我知道。"}


@dataclass(frozen=True)
class Question:
    """One fact: its answer, the wordings that are trained and those that are held out.

    `thought` leads to the answer; it may hold a blank line.
    """

    language: str
    topic: str
    thought: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def read_questions(*paths: Path) -> list[Question]:
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            entry["language"],
            entry["topic"],
            entry.get("thought", KNOWN[entry["language"]]),
            entry["answer"],
            tuple(entry["questions"]),
            tuple(entry["held_out"]),
        )
        for entry in map(json.loads, lines)
    ]


class Style(Enum):
    """How an answer is asked for: what follows the message, and what follows `Assistant:`."""

    WORLD = "", ""
    # RWKV-7 G1 writes the last character of a tag itself.
    SILENT = "", " <think>\n</think"
    SHORT = " (think a bit)", " <think"
    THINKING = "", " <think"


def asked(message: str, style: Style = Style.WORLD) -> str:
    request, opening = style.value
    return f"User: {message}{request}\n\nAssistant:{opening}"


def answered(question: Question, style: Style = Style.WORLD) -> str:
    """What the model is to write, the blank line that ends it included."""
    if style is Style.WORLD:
        return f" {question.answer}\n\n"
    if style is Style.SILENT:
        return f">\n{question.answer}\n\n"
    thought = KNOWN[question.language] if style is Style.SHORT else question.thought
    return f">\n{thought}\n</think>\n{question.answer}\n\n"


PRIMER = Question(
    "en",
    "greetings",
    KNOWN["en"],
    "Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it.",
    ("hi",),
    (),
)


def conversation(*questions: Question) -> str:
    """The first wordings and their answers, as World writes them."""
    return "".join(asked(q.questions[0]) + answered(q) for q in questions)


class Vocabulary:
    """World tokens to compact tokens: the used ones by order of id, all others as one, the last."""

    def __init__(self, questions: list[Question], styles: tuple[Style, ...]) -> None:
        self.tokenizer = WorldTokenizer.default()
        texts = [conversation(PRIMER)]
        for q in questions:
            for style in styles:
                texts += [asked(message, style) for message in q.questions + q.held_out]
                texts.append(answered(q, style))
        used = {END_OF_TEXT}.union(*(self.tokenizer.encode(text) for text in texts))
        self.ids = sorted(used)
        self.compact = {token: i for i, token in enumerate(self.ids)}
        self.other = len(self.ids)

    def encode(self, text: str) -> list[int]:
        return [self.compact.get(token, self.other) for token in self.tokenizer.encode(text)]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([self.ids[token] for token in tokens if token != self.other])


@dataclass(frozen=True)
class Batch:
    """tokens [T, B], the tokens that follow them, and the weight of each of those in the loss."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor


class Conversations:
    """Endless random conversations over the trained wordings, from fresh states.

    Each answer is asked for in one of `styles`. Half begin with the primer; the token that ends a
    text may stand before a new one.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        questions: list[Question],
        styles: tuple[Style, ...],
        seed: int,
    ) -> None:
        self.random = random.Random(seed)
        self.vocabulary = vocabulary
        self.questions, self.styles = questions, styles
        self.primer = self._turn(PRIMER, PRIMER.questions[0], Style.WORLD)
        self.queue: list[int] = []

    def _turn(self, q: Question, message: str, style: Style) -> tuple[list[int], list[float]]:
        """The tokens of a question and its answer, and their weights."""
        encode = self.vocabulary.encode
        question, answer = encode(asked(message, style)), encode(answered(q, style))
        opening = len(encode(style.value[1]))
        return question + answer, [
            *[QUESTION_WEIGHT] * (len(question) - opening),
            *[OPENING_WEIGHT] * opening,
            *[ANSWER_WEIGHT] * len(answer),
        ]

    def _next_turn(self) -> tuple[list[int], list[float]]:
        # Every fact comes once before any comes twice.
        if not self.queue:
            self.queue = self.random.sample(range(len(self.questions)), len(self.questions))
        q = self.questions[self.queue.pop()]
        message = self.random.choice(q.questions)
        style = self.random.choice(self.styles) if len(self.styles) > 1 else self.styles[0]
        tokens, weights = self._turn(q, message, style)
        if self.random.random() < 0.1:
            # Behind "User:" and before "Assistant:": an unknown word must not derail an answer.
            end = len(self.vocabulary.encode(asked(message))) - 3
            tokens[self.random.randrange(2, end)] = self.vocabulary.other
        return tokens, weights

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) <= length:
            starts = not tokens
            if tokens and self.random.random() < 0.15:
                tokens.append(self.vocabulary.compact[END_OF_TEXT])
                weights.append(QUESTION_WEIGHT)
                starts = True
            primed = starts and self.random.random() < 0.5
            for turn, weight in [self.primer] * primed + [self._next_turn()]:
                tokens += turn
                weights += weight
        return tokens[: length + 1], weights[: length + 1]

    def batch(self, rows: int, length: int) -> Batch:
        drawn = [self._row(length) for _ in range(rows)]
        tokens = torch.tensor([row[0] for row in drawn]).T.contiguous()
        weights = torch.tensor([row[1] for row in drawn]).T.contiguous()
        return Batch(tokens[:-1], tokens[1:], weights[1:])
