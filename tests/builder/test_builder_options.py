"""A build's options: each a field, a flag of the command and an argument of `build`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlc_rwkv_world
from mlc_rwkv_world.builder import assemble
from mlc_rwkv_world.builder.options import Options, flags
from mlc_rwkv_world.cli import build as command
from mlc_rwkv_world.errors import UsageError

NAMES = [field.name for field in dataclasses.fields(Options)]
# What is no option of a build: every command's own.
EVERYWHERE = {"--help", "--debug", "--version"}
# Values other than the default, where not any text will do.
VALUES = {"use_cache": 0, "compute_dtype": "float32", "fp32_layers": "0,2-5", "template": "qa"}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """What builds were asked for, in place of building."""
    options: list[Options] = []

    def build(asked: Options, additions: object, _reporter: object) -> None:
        assert (additions is not None) == asked.stock
        options.append(asked)
        raise UsageError("heard")

    monkeypatch.setattr(assemble, "build", build)
    return options


@pytest.mark.parametrize("name", NAMES)
def test_each_option_is_a_flag_and_an_argument(name: str, heard: list[Options]) -> None:
    flag = dict(flags())[name]
    value: Any = flag.sets
    if value is None:
        value = VALUES.get(name, 3 if flag.convert is int else "text")
    given = [flag.name] if flag.sets is not None else [flag.name, str(value)]
    source = [] if name in ("source", "model") else ["--hf-path", "here"]
    assert command.main([*source, *given]) == UsageError.exit_status
    with pytest.raises(UsageError, match="heard"):
        mlc_rwkv_world.build(**{"source": "here"} | {name: value})
    by_command, by_name = heard
    assert getattr(by_command, name) == getattr(by_name, name) == value
    default = next(f.default for f in dataclasses.fields(Options) if f.name == name)
    # What --use-safetensors asks for is what is done anyway.
    assert (value != default) == (name != "prefer_safetensors")
    if name != "model":
        assert by_command == by_name


def test_nothing_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(inspect.signature(mlc_rwkv_world.build).parameters) == [*NAMES, "reporter"]
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = set(re.findall(r"^  (?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.M))
    assert shown == {flag.name for _, flag in flags()} | EVERYWHERE
    with pytest.raises(TypeError, match="quantisation"):
        mlc_rwkv_world.build("here", quantisation="q0f32")


def test_defaults_are_those_of_options(heard: list[Options]) -> None:
    assert command.main(["--hf-path", "here"]) == UsageError.exit_status
    assert heard == [Options("here")]


def test_templates_that_no_build_can_have() -> None:
    with pytest.raises(UsageError, match="no template 'g2'; there are world, g1, instruction, qa"):
        Options("here", template="g2")
    with pytest.raises(UsageError, match="which this build leaves out"):
        Options("here", template="qa", weights=False)


def test_where_modules_are_written(tmp_path: Path) -> None:
    assert Options(output=tmp_path).dump is None
    assert Options(output=tmp_path, debug_dump=True).dump == tmp_path / "debug"
    assert Options(output=tmp_path, debug_dump=tmp_path / "x").dump == tmp_path / "x"


@pytest.mark.slow
@pytest.mark.parametrize("stock", [False, True])
def test_no_stock_imports_nothing_of_it(source: Path, tmp_path: Path, stock: bool) -> None:
    code = (
        "import sys, mlc_rwkv_world\n"
        "from mlc_rwkv_world.cli.start import start\n"
        "start()\n"
        "mlc_rwkv_world.build(sys.argv[1], output=sys.argv[2], target='llvm', use_cache=False,\n"
        f"    stock={stock}, system_lib=True)\n"
        "print([name for name in sys.modules if name.startswith('mlc_rwkv_world.stock')])"
    )
    # TVM's entry point would import its own part.
    result = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path],
        check=True,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "TVM_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    assert (result.stdout.strip() == "[]") == (not stock), result.stdout
