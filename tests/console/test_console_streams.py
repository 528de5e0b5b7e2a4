"""Standard streams that are closed, full or gone, for every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MODULE = [sys.executable, "-m", "mlc_rwkv_world"]
FULL = Path("/dev/full")


def shell(line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `line`, in which "$@" is the package's command."""
    command = ["bash", "-c", line, "bash", *MODULE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def model(demo_artifact: Callable[[str], Path]) -> str:
    return str(demo_artifact("q4f16_1"))


@pytest.mark.parametrize(
    ("closed", "shown"), [(">&-", ""), ("2>&-", "Paris"), ("<&-", "Paris"), (">&- 2>&- <&-", "")]
)
def test_a_closed_stream_leads_nowhere(model: str, closed: str, shown: str) -> None:
    result = shell(
        f'"$@" {closed}',
        *("chat", "--model", model, "--temperature", "0"),
        *("--prompt", "What is the capital of France?"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert shown in result.stdout
    assert bool(shown) == bool(result.stdout)


def test_a_closed_input_has_ended(model: str) -> None:
    result = shell('"$@" <&-', "chat", "--model", model)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_an_error_that_cannot_be_told_is_still_a_status(tmp_path: Path) -> None:
    for line in ('"$@" 2>&-', '"$@" 2>/dev/full') if FULL.exists() else ('"$@" 2>&-',):
        assert shell(line, "chat", "--model", "nothing-here", "--prompt", "x").returncode == 3
        assert shell(line, "chat", "--nonsense").returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints would go into the first file that is opened."""
    file = tmp_path / "file"
    code = (
        "import os; from mlc_rwkv_world import console; console.open_streams();"
        f"f = open({str(file)!r}, 'w'); os.write(1, b'x'); os.write(2, b'y'); print('z')"
    )
    line = f'"{sys.executable}" -c "$0" >&- 2>&- <&-'
    assert subprocess.run(["bash", "-c", line, code], check=False, timeout=60).returncode == 0
    assert file.read_bytes() == b""


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["chat", "--help"],
        ["build", "--version"],
        ["doctor"],
        ["chat", "--model", "{model}", "--prompt", "Hi", "--max-tokens", "2"],
        ["verify", "{model}"],
    ],
)
def test_a_full_disk_is_one_message(arguments: list[str], model: str) -> None:
    result = shell('"$@" > /dev/full', *(word.format(model=model) for word in arguments))
    assert result.returncode == 11
    assert result.stderr.endswith("standard output cannot be written: No space left on device. "
                                  "Send it to another place.\n")  # fmt: skip
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_a_build_that_cannot_tell_blames_no_disk_of_its_own(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--convert-weights-only", "--artifact-path", str(tmp_path)]
    result = shell('"$@" > /dev/full', "build", "--hf-path", str(demo_checkpoint), *options)
    assert result.returncode == 11
    assert "standard output cannot be written" in result.stderr
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.mark.slow
def test_a_build_whose_reader_goes_away(demo_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--convert-weights-only", "--artifact-path", str(tmp_path)]
    line = '"$@" | exec true; exit ${PIPESTATUS[0]}'
    result = shell(line, "build", "--hf-path", str(demo_checkpoint), *options)
    assert (result.returncode, result.stderr) == (141, "")


def test_conversations_end_where_nothing_can_be_shown(model: str) -> None:
    if FULL.exists():
        line = 'yes Hi | "$@" > /dev/full'
        result = shell(line, "chat", "--model", model, "--max-tokens", "1")
        assert result.returncode == 11
        assert result.stderr.count("\n") == 1
