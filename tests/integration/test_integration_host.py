"""With a real mlc_llm: its own commands on our model, our artifacts in its engine, same tokens."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import run, with_path
from support.checkpoints import read_hf, write_pth

import mlc_rwkv_world as world
from mlc_rwkv_world.tokenizer import WorldTokenizer

pytestmark = pytest.mark.host

DRIVER = Path(__file__).with_name("engine_driver.py")
QUESTIONS = Path(__file__).parents[2] / "demo" / "questions.jsonl"
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 31, 33, 48, 64, 65, 80, 100, 127, 150, 200)
LONG = (256, 300, 384, 450, 500, 511, 512, 513, 700, 1100)
CHUNK = 512
NEW_TOKENS = 16
USED_IDS = 65529
# Where the reference's best two logits are closer, which one wins is nobody's mistake.
TIE = 1e-3


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Of every length, cut from conversations about what the model was trained on."""
    tokenizer, rng = WorldTokenizer.default(), random.Random(4)
    entries = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    asked = []
    for length in (*LENGTHS, *LONG):
        ids: list[int] = []
        while len(ids) < length:
            entry = rng.choice(entries)
            turn = f"User: {rng.choice(entry['questions'])}\n\nAssistant: {entry['answer']}\n\n"
            ids += tokenizer.encode(turn)
        asked.append(ids[:length])
    for entry in rng.sample(entries, 8):
        asked.append(tokenizer.encode(f"User: {entry['questions'][0]}\n\nAssistant:"))
    # Characters that the vocabulary has no token for span several.
    asked.append(tokenizer.encode("User: 🦤🪼 𠜎𠜱𠝹\n\nAssistant:"))
    asked.append(tokenizer.encode("🦤🪼 𠜎𠜱𠝹")[:-1])
    return asked


@pytest.fixture(scope="module")
def expected(
    demo_checkpoint: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[list[int], int]]:
    """The reference's tokens, and how many of them come before its first near tie."""
    pth = tmp_path_factory.mktemp("reference") / "model.pth"
    path = write_pth(pth, read_hf(demo_checkpoint))
    from rwkv.model import RWKV

    model = RWKV(model=str(path), strategy="cpu fp32", verbose=False)
    found = []
    for prompt in prompts:
        logits, state = model.forward(prompt, None)
        ids, certain = [], NEW_TOKENS
        for step in range(NEW_TOKENS):
            values = np.asarray(logits.numpy(), np.float32)[:USED_IDS]
            second, first = np.partition(values, -2)[-2:]
            if first - second < TIE:
                certain = min(certain, step)
            ids.append(int(values.argmax()))
            logits, state = model.forward(ids[-1:], state)
        found.append((ids, certain))
    assert sum(certain == NEW_TOKENS for _, certain in found) >= 0.95 * len(found)
    return found


def in_engine(
    path: Sequence[Path],
    folder: Path,
    library: Path,
    prompts: list[list[int]],
    rounds: list[list[int]],
    **settings: Any,
) -> list[list[dict[str, Any]]]:
    """What the host's engine answers, round by round."""
    job = {
        "model": str(folder),
        "library": str(library),
        "prompts": prompts,
        "rounds": rounds,
        "max_tokens": NEW_TOKENS,
        "settings": settings,
    }
    result = subprocess.run(
        [sys.executable, DRIVER],
        input=json.dumps(job),
        env=with_path(path),
        capture_output=True,
        text=True,
        timeout=600,
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
    answers = in_engine(path, folder, library, prompts, rounds)
    tokenizer = WorldTokenizer.default()
    for indices, answered in zip(rounds, answers, strict=True):
        for index, answer in zip(indices, answered, strict=True):
            compare(answer, expected[index], tokenizer)


def in_our_engine(
    folder: Path, library: Path, prompts: list[list[int]], expected: list[tuple[list[int], int]]
) -> None:
    engine = world.load(folder, "cpu", model_lib=library)
    for prompt, (ids, certain) in zip(prompts, expected, strict=True):
        state = engine.new_state()
        logits = engine.prefill(prompt, state)
        for step in range(certain):
            assert int(logits[:USED_IDS].argmax()) == ids[step]
            logits = engine.decode(ids[step], state)


def test_our_artifact(
    host_path: list[Path],
    demo_artifact: Callable[[str], Path],
    prompts: list[list[int]],
    expected: list[tuple[list[int], int]],
) -> None:
    folder = demo_artifact("q0f32")
    (library,) = folder.glob("*.so")
    check_engine(host_path, folder / "params", library, prompts, expected)
    in_our_engine(folder, library, prompts, expected)


@pytest.fixture(scope="module")
def theirs(
    host_path: list[Path], demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the host's own three commands made, with `lib.so` in it."""
    folder = tmp_path_factory.mktemp("theirs")
    quantization = ["--quantization", "q0f32"]
    template = ["--conv-template", "rwkv_world"]
    for command in (
        ["gen_config", demo_checkpoint, *quantization, *template, "-o", folder],
        ["convert_weight", demo_checkpoint, *quantization, "--device", "cpu", "-o", folder],
        ["compile", folder, "--device", "cpu", "-o", folder / "lib.so"],
    ):
        result = run(["-m", "mlc_llm", *command], host_path)
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_what_the_hosts_commands_wrote(
    host_path: list[Path],
    theirs: Path,
    prompts: list[list[int]],
    expected: list[tuple[list[int], int]],
) -> None:
    check_engine(host_path, theirs, theirs / "lib.so", prompts, expected)
    in_our_engine(theirs, theirs / "lib.so", prompts, expected)


def test_float32_stays_float32(theirs: Path, demo_artifact: Callable[[str], Path]) -> None:
    ours = demo_artifact("q0f32") / "params"
    shards = sorted(path.name for path in ours.glob("params_shard_*.bin"))
    assert shards == sorted(path.name for path in theirs.glob("params_shard_*.bin"))
    for name in [*shards, "tensor-cache.json", "ndarray-cache.json", "tokenizer_model"]:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()


def test_doctor(host_path: list[Path]) -> None:
    result = run(["-m", "mlc_rwkv_world", "doctor"], host_path)
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stdout.splitlines() if line.endswith(": done")]
    from mlc_rwkv_world.integration.registration import STEPS

    assert len(steps) == len(STEPS), result.stdout
