"""RWKV-7 in a real mlc_llm: its own commands on our model, and the tokens of its engine."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from host_engine import check_engine, in_engine
from stand_in import run
from support.checkpoints import random_rwkv7, write_fla, write_pth
from support.greedy import NEW_TOKENS
from support.peers import rwkv7_greedy

from mlc_rwkv_world.tokenizer import WorldTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.host]

# The longest that the host's limit of 4096 tokens leaves room for, and one beyond it.
LENGTHS = (1, 2, 5, 16, 33, 64, 100, 200, 511, 513, 1100, 4000)
TOO_LONG = 5000
Expected = list[tuple[list[int], int]]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(1, 65529) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The tokens of BlinkDL's `rwkv`, and how many come before its first near tie."""
    found = rwkv7_greedy(
        write_pth(tmp_path_factory.mktemp("reference") / "model.pth", random_rwkv7()), prompts
    )
    assert sum(certain == NEW_TOKENS for _, certain in found) >= 0.75 * len(found)
    return found


@pytest.mark.parametrize("chosen", [[], ["--model-type", "rwkv_world"]], ids=["rwkv7", "named"])
def test_the_hosts_commands_and_engine(
    host_path: list[Path],
    prompts: list[list[int]],
    expected: Expected,
    tmp_path: Path,
    chosen: list[str],
) -> None:
    """Each prompt alone, twice in a row, and eight at a time; and one that is too long."""
    checkpoint = write_fla(tmp_path / "RWKV7-World", random_rwkv7())
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
