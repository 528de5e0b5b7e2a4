"""Questions, conversations in the World prompt format, and batches of compact tokens."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlc_rwkv_world.tokenizer import END_OF_TEXT, WorldTokenizer

PRIMER = (
    "hi",
    "Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it.",
)
ANSWER_WEIGHT, QUESTION_WEIGHT = 1.0, 0.1


@dataclass(frozen=True)
class Question:
    """One fact: its answer, the wordings that are trained and those that are held out."""

    language: str
    topic: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            entry["language"],
            entry["topic"],
            entry["answer"],
            tuple(entry["questions"]),
            tuple(entry["held_out"]),
        )
        for entry in entries
    ]


def asked(message: str) -> str:
    return f"User: {message}\n\nAssistant:"


def answered(answer: str) -> str:
    return f" {answer}\n\n"


def conversation(*pairs: tuple[str, str]) -> str:
    return "".join(asked(message) + answered(answer) for message, answer in pairs)


class Vocabulary:
    """World tokens to compact tokens: the used ones by order of id, all others as one, the last."""

    def __init__(self, questions: list[Question]) -> None:
        self.tokenizer = WorldTokenizer.default()
        texts = [conversation(PRIMER)]
        for question in questions:
            for message in question.questions + question.held_out:
                texts.append(conversation((message, question.answer)))
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

    Half of them begin with the primer; the token that ends a text may stand before a new one.
    """

    def __init__(self, vocabulary: Vocabulary, questions: list[Question], seed: int) -> None:
        self.random = random.Random(seed)
        self.vocabulary = vocabulary
        self.pairs = [
            [self._pair(message, question.answer) for message in question.questions]
            for question in questions
        ]
        self.primer = self._pair(*PRIMER)
        self.queue: list[int] = []

    def _pair(self, message: str, answer: str) -> tuple[list[int], list[int]]:
        return self.vocabulary.encode(asked(message)), self.vocabulary.encode(answered(answer))

    def _next_pair(self) -> tuple[list[int], list[int]]:
        # Every fact comes once before any comes twice.
        if not self.queue:
            self.queue = self.random.sample(range(len(self.pairs)), len(self.pairs))
        question, answer = self.random.choice(self.pairs[self.queue.pop()])
        if self.random.random() < 0.1:
            question = list(question)
            # Past "User:" and before "\n\nAssistant:": an unknown word must not derail an answer.
            question[self.random.randrange(2, len(question) - 3)] = self.vocabulary.other
        return question, answer

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
            for question, answer in [self.primer] * primed + [self._next_pair()]:
                tokens += question + answer
                weights += [QUESTION_WEIGHT] * len(question) + [ANSWER_WEIGHT] * len(answer)
        return tokens[: length + 1], weights[: length + 1]

    def batch(self, rows: int, length: int) -> Batch:
        drawn = [self._row(length) for _ in range(rows)]
        tokens = torch.tensor([row[0] for row in drawn]).T.contiguous()
        weights = torch.tensor([row[1] for row in drawn]).T.contiguous()
        return Batch(tokens[:-1], tokens[1:], weights[1:])
