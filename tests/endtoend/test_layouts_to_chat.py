"""One RWKV-7 in every layout that it is published in: the same shards, and the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import as_stored, random_rwkv7, write_fla, write_pth

import mlc_rwkv_world as world

QUESTION = "What is the capital of France?"


@pytest.mark.slow
def test_the_same_shards_and_answers(tmp_path: Path) -> None:
    """What bfloat16 holds, the wider types of the other layouts do."""
    tensors = as_stored(random_rwkv7(2, 64, head_size=32, seed=4), "bfloat16")
    sources = [
        write_pth(tmp_path / "published.pth", tensors, "bfloat16"),
        write_pth(tmp_path / "wide.pth", tensors, "float64"),
        write_fla(tmp_path / "fla", tensors, "bfloat16"),
        write_fla(tmp_path / "older", tensors, "float32", shards=3, one_mix=True),
    ]
    given: dict[str, Any] = {"quantization": "q4f16_1", "output": tmp_path / "dist", "stock": False}
    built = [
        world.build(source, **given, library=number == 0) for number, source in enumerate(sources)
    ]
    (library,) = built[0].libraries
    shards, answers = [], []
    for artifact in built:
        files = sorted(artifact.params.glob("params_shard_*.bin"))
        shards.append([(path.name, path.read_bytes()) for path in files])
        engine = world.load(artifact.params, "cpu", model_lib=library)
        chat = world.Chat(engine, seed=7, max_tokens=16)
        answers.append("".join(chat.ask(QUESTION)))
    assert shards[0] and all(found == shards[0] for found in shards)
    assert answers[0] and all(answer == answers[0] for answer in answers)
