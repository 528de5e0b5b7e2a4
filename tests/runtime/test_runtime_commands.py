"""What the commands that run a model say of options and files that cannot be used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_rwkv_world.cli import bench, perplexity, verify
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime import threads, tvm_runtime

Command = Callable[[list[str], str], int]


@pytest.mark.parametrize(
    ("command", "arguments", "status", "message"),
    [
        (bench.main, ["--prefill", "0"], 2, "--prefill '0': give numbers from 1 to 999999"),
        (bench.main, ["--prefill", "²"], 2, "--prefill '²': give numbers"),
        (bench.main, ["--batch", ","], 2, "--batch ',': give numbers"),
        (bench.main, ["--batch", "9" * 5000], 2, "give numbers"),
        (bench.main, ["--rounds", "0"], 2, "--rounds and --steps are at least 1"),
        (bench.main, ["--threads", "0"], 2, "0 threads: there has to be at least 1"),
        (bench.main, ["--device", "abacus"], 2, "'abacus' is no device. Give auto"),
        (bench.main, ["--device", "cpu", "--json", "{no}/x"], 11, "{no}/x cannot be written: No"),
        (perplexity.main, ["--text", "{no}"], 3, "{no}: there is no such file"),
        (perplexity.main, ["--text", "/"], 2, "/ cannot be read: Is a directory. Give a text"),
        (perplexity.main, ["--text", "/dev/null"], 2, "/dev/null is empty"),
        (perplexity.main, ["--text", "{bad}"], 2, "is not UTF-8 (byte 0xff at 2). Convert it"),
        (perplexity.main, ["--text", "{text}", "--window", "0"], 2, "give at least one token"),
    ],
)
def test_one_message_and_a_status(
    command: Command,
    arguments: list[str],
    status: int,
    message: str,
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"no": tmp_path / "no", "bad": tmp_path / "bad", "text": tmp_path / "text"}
    places["bad"].write_bytes(b"ab\xff")
    places["text"].write_text("Hello there.")
    filled = [argument.format(**places) for argument in arguments]
    if command is bench.main:
        filled = ["--no-limits", "--rounds", "1", "--steps", "1", *filled]
        filled = ["--prefill", "2", "--batch", "1", *filled]
    assert command([str(demo_artifact("q4f16_1")), *filled], "x") == status
    errors = capsys.readouterr().err
    assert message.format(**places) in errors
    assert errors.startswith("x: error: ")
    assert errors.count("\n") == 1


def test_results_replace_only_older_results(
    demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    quick = ["--no-limits", "--prefill", "1", "--batch", "1", "--rounds", "1", "--steps", "1"]
    arguments = [str(demo_artifact("q4f16_1")), "--device", "cpu", *quick, "--json", str(path)]
    assert [bench.main(arguments, "x") for _ in range(2)] == [0, 0]
    assert json.loads(path.read_text())["device"] == "cpu:0"
    path.write_text('{"model": "mine"}')
    # Said before the model is looked for.
    assert bench.main(["./nowhere", "--json", str(path)], "x") == 2
    assert f"{path} is there already, and is no result of bench" in capsys.readouterr().err
    assert path.read_text() == '{"model": "mine"}'


@pytest.mark.parametrize("command", [bench.main, verify.main])
@pytest.mark.parametrize(("model", "status"), [("", 2), ("nowhere", 3), ("/dev/null", 3)])
def test_models_that_are_none(
    command: Command, model: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([model], "x") == status
    assert capsys.readouterr().err.startswith("x: error: ")


def test_threads_that_are_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM reads the variable too; what is no number to us is left out."""
    asked: list[int] = []
    monkeypatch.setattr(tvm_runtime, "function", lambda _: lambda _, count: asked.append(count))
    monkeypatch.setattr(threads, "physical_cores", lambda: 7)
    for value in ("²", "-1", "0", "9" * 5000, "two"):
        monkeypatch.setitem(os.environ, threads.VARIABLE, value)
        assert threads.use(None) == 7
    assert asked == [7] * 5
    with pytest.raises(UsageError, match="-1 threads"):
        threads.use(-1)
