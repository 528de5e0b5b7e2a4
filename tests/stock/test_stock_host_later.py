"""RWKV-5 to 7 in a real mlc_llm: its commands on our models, and the tokens of its engine."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_engine import check_engine, in_engine
from stand_in import run
from support.checkpoints import (
    Tensors,
    random_rwkv5,
    random_rwkv7,
    write_fla,
    write_hf_safetensors,
    write_pth,
)
from support.greedy import NEW_TOKENS
from support.peers import rwkv_greedy

from mlc_rwkv_world.tokenizer import WorldTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.host]

# The longest that the host's limit of 4096 tokens leaves room for, and one beyond it.
LENGTHS = (1, 2, 5, 16, 33, 64, 100, 200, 511, 513, 1100, 4000)
TOO_LONG = 5000


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(1, 65529) for _ in range(length)] for length in LENGTHS]


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model of a version as it is published for Hugging Face's tools."""

    version: int
    tensors: Tensors
    write: Callable[..., Path]
    config: dict[str, Any]


def _case(name: str) -> Case:
    if name == "7":
        return Case(7, random_rwkv7(), write_fla, {})
    # The number of heads that published configurations have, which is none.
    config = {"model_type": f"rwkv{name[0]}", "head_size": 64, "num_attention_heads": 64}
    return Case(int(name[0]), random_rwkv5(version=name), write_hf_safetensors, config)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("7", []),
        ("7", ["--model-type", "rwkv_world"]),
        ("5.0", []),
        ("5.1", []),
        ("5.2", []),
        ("6.0", []),
    ],
    ids=["rwkv7", "named", "rwkv5.0", "rwkv5.1", "rwkv5", "rwkv6"],
)
def test_the_hosts_commands_and_engine(
    host_path: list[Path],
    prompts: list[list[int]],
    tmp_path: Path,
    name: str,
    chosen: list[str],
) -> None:
    """Each prompt alone, twice in a row, and eight at a time; and one that is too long."""
    case = _case(name)
    # The tokens of BlinkDL's `rwkv`, and how many come before its first near tie.
    pth = write_pth(tmp_path / "reference" / "model.pth", case.tensors)
    expected = rwkv_greedy(case.version, pth, prompts)
    assert sum(certain == NEW_TOKENS for _, certain in expected) >= 0.75 * len(expected)
    checkpoint = case.write(tmp_path / "RWKV-World", case.tensors, **case.config)
    folder, given = tmp_path / "model", [checkpoint, *chosen, "--quantization", "q0f32"]
    for command in (
        ["gen_config", *given, "--conv-template", "rwkv_world", "-o", folder],
        ["convert_weight", *given, "--device", "cpu", "-o", folder],
        ["compile", folder, "--device", "cpu", "-o", folder / "lib.so"],
    ):
        result = run(["-m", "mlc_llm", *command], host_path)
        assert result.returncode == 0, result.stderr[-3000:]
    check_engine(host_path, folder, folder / "lib.so", prompts, expected)
    long = [random.Random(8).randrange(1, 65529) for _ in range(TOO_LONG)]
    ((refused,), (after,)) = in_engine(
        host_path, folder, folder / "lib.so", [long, prompts[3]], [[0], [1]]
    )
    # The host says how long prompts may be, and goes on.
    assert refused["ids"] == []
    assert after["ids"] == expected[3][0]
    assert WorldTokenizer.default().decode(after["ids"]) == after["text"]
