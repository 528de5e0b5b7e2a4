"""Answers that tokens are pushed into, without an engine: ends, text, choices, scores."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlc_rwkv_world.artifact.stopping import StopRule, Thought
from mlc_rwkv_world.errors import ArtifactError, UsageError, VocabularyError
from mlc_rwkv_world.runtime import Answer, Sampler, Sampling
from mlc_rwkv_world.runtime.answer import choose_all
from mlc_rwkv_world.tokenizer import WorldTokenizer

BLANK = StopRule(("\n\n",))
AFTER_THOUGHT = StopRule(("\n\n",), thought=Thought(">", "</think>", ("\n\nUser:",)))
AFTER_MARK = StopRule(("\n\n",), thought=Thought(">"))
TOKENIZER = WorldTokenizer.default()
USABLE = TOKENIZER.token_count + 1


def an_answer(seed: int = 0, sampling: Sampling | None = None, **options: Any) -> Answer:
    return Answer(TOKENIZER, Sampler(sampling or Sampling(), seed, USABLE), **options)


def push(answer: Answer, ids: list[int]) -> str:
    """Takes ids until the answer ends; the text of all."""
    text = ""
    for one in ids:
        if answer.finish_reason is not None:
            break
        text += answer.take(one)
    return text


def logits_for(*rows: int) -> npt.NDArray[np.float32]:
    return np.stack([np.random.default_rng(row).normal(0, 3, 65536) for row in rows]).astype("f4")


@pytest.mark.parametrize(
    ("options", "tokens", "text", "reason"),
    [
        ({}, ["Paris.", 0], "Paris.", "stop"),
        ({}, ["Paris.\n"], "Paris.\n", None),
        ({"stop": BLANK}, ["Paris.\n\nUser"], "Paris.", "stop"),
        ({"stop": BLANK}, ["Paris.", "\n", "\n"], "Paris.", "stop"),
        ({"stop": BLANK}, ["Paris.", "\n", 0], "Paris.\n", "stop"),
        ({"stop": BLANK}, ["Paris.", "\n"], "Paris.", None),
        ({"stop": BLANK, "max_tokens": 2}, [" Paris", "\n", "x"], " Paris\n", "length"),
        ({"stop": StopRule(("is",)), "max_tokens": 1}, ["Paris"], "Par", "stop"),
        ({"stop": StopRule(ids=frozenset({261}))}, [45, 261, 45], ",", "stop"),
        ({"stop": StopRule(ids=frozenset())}, [45, 0, 45], ",,", None),
        ({"max_tokens": 2}, ["\U00020000"], "", "length"),
        ({}, ["\U00020000"], "\U00020000", None),
    ],
)
def test_ends_and_text(
    options: dict[str, Any], tokens: list[str | int], text: str, reason: str | None
) -> None:
    answer = an_answer(**options)
    ids = [[one] if isinstance(one, int) else TOKENIZER.encode(one) for one in tokens]
    assert push(answer, list(chain.from_iterable(ids))) == text
    assert answer.finish_reason == reason


@pytest.mark.parametrize(
    ("stop", "tokens", "text", "unwritten"),
    [
        (AFTER_THOUGHT, [">\n", "I\n\nsee", "</think>", "\n\nYes.\n\n"], None, ""),
        (AFTER_THOUGHT, [">I\n\nsee", "\n\nUser: x"], ">I\n\nsee", "\n</think>"),
        (AFTER_THOUGHT, [">I see", 0], ">I see", "\n</think>"),
        (AFTER_THOUGHT, [0], "", ">\n</think>"),
        (AFTER_MARK, [">\n\n", "Yes.\n\n"], ">\n\nYes.", ""),
        (AFTER_MARK, ["Yes.\n\n"], "Yes.", ""),
        (AFTER_MARK, [0], "", ">"),
        (BLANK, [0], "", ""),
    ],
)
def test_stop_strings_count_after_a_thought(
    stop: StopRule, tokens: list[str | int], text: str | None, unwritten: str
) -> None:
    answer = an_answer(stop=stop)
    ids = [[one] if isinstance(one, int) else TOKENIZER.encode(one) for one in tokens]
    expected = text if text is not None else "".join(map(str, tokens)).removesuffix("\n\n")
    assert push(answer, list(chain.from_iterable(ids))) == expected
    assert answer.finish_reason == "stop"
    assert answer.unwritten == unwritten


def test_stop_ids_are_no_tokens_of_the_answer() -> None:
    answer = an_answer()
    push(answer, [*TOKENIZER.encode("Paris"), 0])
    assert answer.tokens_taken == len(TOKENIZER.encode("Paris"))


def test_nothing_is_taken_behind_the_end_nor_without_a_token() -> None:
    answer = an_answer(max_tokens=1)
    for unknown in (-1, 65530):
        with pytest.raises(VocabularyError, match=str(unknown)):
            answer.take(unknown)
    assert (answer.take(45), answer.finish_reason) == (",", "length")
    with pytest.raises(UsageError, match="has ended"):
        answer.take(45)
    assert answer.tokens_taken == 1


def test_taken_tokens_are_penalized_whoever_chose_them() -> None:
    answer = an_answer(sampling=Sampling(temperature=0, presence_penalty=2))
    logits = np.zeros(65536, np.float32)
    logits[[45, 46]] = 2, 1
    assert answer.choose(logits) == answer.choose(logits) == 45
    answer.take(45)
    assert answer.choose(logits) == 46
    mask = np.zeros(2048, np.uint32)
    mask[45 // 32] = 1 << 45 % 32
    assert answer.choose(logits, mask) == 45


def test_many_answers_choose_as_each_alone() -> None:
    logits = logits_for(*range(5))
    options: list[dict[str, Any]] = [{}, {"top_scores": 0}, {}, {"top_scores": 3}, {}]
    hot = Sampling(temperature=1.5, top_p=0.95)
    alone = [an_answer(row, hot, **one) for row, one in enumerate(options)]
    together = [an_answer(row, hot, **one) for row, one in enumerate(options)]
    for _ in range(4):
        expected = [one.choose(row) for one, row in zip(alone, logits, strict=True)]
        chosen = choose_all(together, logits)
        assert chosen == expected
        for one, other, token in zip(alone, together, expected, strict=True):
            assert one.scores == other.scores
            assert one.take(token) == other.take(token)
    assert [one.scores is not None for one in together] == [False, True, False, True, False]
    scores = together[3].scores
    assert scores is not None and len(scores.top) == 3
    assert scores.log_probability <= scores.top[0][1] < 0


def test_a_fault_is_of_one_answer() -> None:
    logits = logits_for(0, 1, 2)
    logits[1] = math.nan
    answers = [an_answer(row, top_scores=1) for row in range(3)]
    first, second, third = choose_all(answers, logits)
    assert isinstance(first, int) and isinstance(third, int)
    assert isinstance(second, ArtifactError)
    assert answers[0].scores is not None and answers[1].scores is None
    with pytest.raises(ArtifactError, match="not a number"):
        answers[1].choose(logits[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 0}, "max_tokens"), ({"stop": StopRule(("",))}, "stop string")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        an_answer(**options)
