"""The GPU's benchmark from end to end, on the emulated GPU; its peer, on this CPU."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_benchmark import BENCHMARKS  # puts the benchmarks' modules in reach
from support import cuda_emulation

from mlc_rwkv_world.versions.table import VERSIONS


def test_the_plan_has_every_version() -> None:
    import gpu_pack

    names = gpu_pack.PLAN.split(",")
    assert {int(name[0]) for name in names if not name.startswith("peer:")} == set(VERSIONS)
    for name in names:
        config = gpu_pack.config_of(name.removeprefix("peer:"), 4096, 64)
        # What a file of these sizes has: published ranks and hidden sizes are whole words.
        assert config.intermediate_size % 32 == 0 and config.num_hidden_layers >= 24
        twin = gpu_pack.twin_of(config)
        assert (twin.num_hidden_layers, twin.fp32_layers) == (2, (0,))
        assert twin.hidden_size == config.hidden_size


def test_nothing_is_begun_when_the_time_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_run

    plan = [{"model": "7-2x128-q4f16_1", "check": "none.so", "measure": "none.so"}]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    options = gpu_run.parser().parse_args([str(tmp_path), "--minutes", "0", "--check-only"])
    assert gpu_run.run(options, None)
    assert "7-2x128-q4f16_1: not measured, the time is over" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("version", [4, 7])
def test_the_peer_is_measured(version: int) -> None:
    """The package `rwkv`, on this CPU."""
    pytest.importorskip("rwkv")
    import gpu_pack

    config = gpu_pack.twin_of(gpu_pack.config_of(f"{version}-2x128", 64, 2))
    command = [sys.executable, str(BENCHMARKS / "gpu_peer.py"), "a name"]
    command += [json.dumps(dataclasses.asdict(config)), "--strategy", "cpu fp32"]
    command += ["--prefills", "8", "--seconds", "0.001", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    for row in ("decode, batch 1", "prefill, 8"):
        assert f"| rwkv a name cpu fp32 | {row} | " in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or "emulates a GPU"
)
def test_from_end_to_end(tmp_path: Path) -> None:
    """An RWKV-7 is packed, right, and measured."""
    few = ["--lengths", "5", "--batches", "1", "--prefills", "8", "--seconds", "0.001"]
    small = ["--rounds", "1", "--poison", "8", "--copy", "8"]
    passed, said = cuda_emulation.run("gpu_benchmark:run", str(tmp_path), "7-2x128", *few, *small)
    assert passed, said
    assert re.search(r"7-2x128-q4f16_1-twin: right, worst error [1-9]\.\de-0[4-9]", said), said
    for row in ("decode, batch 1", "prefill, 8"):
        assert re.search(rf"\| 7-2x128-q4f16_1-twin \| {row} \| [\d.]+ tok/s \|", said), said
