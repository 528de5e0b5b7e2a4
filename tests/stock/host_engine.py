"""Prompts through the engine of a real mlc_llm, and its tokens beside a reference's."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stand_in import HANG, with_path
from support.greedy import NEW_TOKENS

from mlc_rwkv_world.tokenizer import WorldTokenizer

DRIVER = Path(__file__).with_name("engine_driver.py")


def in_engine(
    path: Sequence[Path],
    folder: Path,
    library: Path,
    prompts: list[list[int]],
    rounds: list[list[int]],
    one_by_one: Sequence[int] = (),
    **settings: Any,
) -> list[list[dict[str, Any]]]:
    """What the host's engine answers, round by round; then MLCEngine's to `one_by_one`."""
    job = {
        "model": str(folder),
        "library": str(library),
        "prompts": prompts,
        "rounds": rounds,
        "one_by_one": one_by_one,
        "max_tokens": NEW_TOKENS,
        "settings": settings,
    }
    result = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps(job),
        env=with_path(path),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[list[dict[str, Any]]] = json.loads(result.stdout.splitlines()[-1])
    return answers


def compare(
    answer: dict[str, Any], expected: tuple[list[int], int], tokenizer: WorldTokenizer
) -> None:
    ids, certain = expected
    assert len(answer["ids"]) == NEW_TOKENS
    assert answer["ids"][:certain] == ids[:certain]
    # A stream that began in the middle of a character says so, and loses nothing after it.
    assert answer["text"] == tokenizer.decode(answer["ids"])


def rounds_of(count: int) -> list[list[int]]:
    """Each prompt alone, twice in a row; then all of them, eight at a time, in two orders."""
    alone = [[i] for i in range(count) for _ in range(2)]
    order = list(range(count))
    random.Random(5).shuffle(order)
    together = [
        list(chunk[i : i + 8]) for chunk in (range(count), order) for i in range(0, count, 8)
    ]
    return alone + together


def check_engine(
    path: Sequence[Path],
    folder: Path,
    library: Path,
    prompts: list[list[int]],
    expected: list[tuple[list[int], int]],
) -> None:
    rounds = rounds_of(len(prompts))
    one_by_one = rounds[-1]
    answers = in_engine(path, folder, library, prompts, rounds, one_by_one)
    tokenizer = WorldTokenizer.default()
    for indices, answered in zip([*rounds, one_by_one], answers, strict=True):
        for index, answer in zip(indices, answered, strict=True):
            compare(answer, expected[index], tokenizer)
