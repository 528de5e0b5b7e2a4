"""`--plot` of `bench` and `perplexity`: pictures, and what they never replace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_rwkv_world import plots
from mlc_rwkv_world.__main__ import main
from mlc_rwkv_world.errors import InstallationError, UsageError

pytest.importorskip("matplotlib")
RESULT = {
    "model": "m",
    "device": "cpu:0",
    "results": [{"what": "decode, batch 1", "tokens_per_second": 3.0}],
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_only_older_plots_are_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    for _ in range(2):
        plots.check(str(path))
        plots.losses(str(path), "m", [3.0, 2.0, 1.0])
        plots.speeds(str(path), RESULT)
    path.write_text("mine")
    with pytest.raises(UsageError, match="is no plot of ours"):
        plots.check(str(path))


def test_what_can_be_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.svg or \.png"):
        plots.check("x.pdf")
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    with pytest.raises(InstallationError, match="extra `plot`"):
        plots.check(str(tmp_path / "x.png"))


def test_nothing_else_imports_it() -> None:
    code = (
        "import sys, mlc_rwkv_world.cli.bench, mlc_rwkv_world.cli.perplexity; "
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_commands_draw(
    demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(demo_artifact("q4f16_1"))
    (tmp_path / "text").write_text("User: hi\n\nAssistant: Hi. I am your assistant.\n\n" * 4)
    asked = ["--text", str(tmp_path / "text"), "--window", "16", "--json"]
    assert main(["perplexity", model, *asked, "--plot", str(tmp_path / "a.svg")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["bits_per_byte"] < 20
    quick = ["--no-limits", "--prefill", "2", "--batch", "1", "--rounds", "1", "--steps", "1"]
    assert main(["bench", model, *quick, "--plot", str(tmp_path / "b.png")]) == 0
    assert (
        b"nats per token" in (tmp_path / "a.svg").read_bytes()
        or b"<path" in (tmp_path / "a.svg").read_bytes()
    )
    assert (tmp_path / "b.png").stat().st_size > 5000
