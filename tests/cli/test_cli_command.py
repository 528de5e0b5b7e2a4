"""`rwkv-world`: its commands, their words, completions, and what it shows and removes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path

import pytest
from support.checkpoints import random_world, write_hf_bin
from support.hub_server import HubServer

from mlc_rwkv_world import __main__, __version__
from mlc_rwkv_world.cli.commands import COMMANDS

REPO = "StarRing2022/RWKV-4-World-tiny"
FRANCE = "What is the capital of France?"


def command(*arguments: str) -> int:
    return __main__.main([*arguments])


def test_the_script_and_the_module_are_the_same() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="rwkv-world")
    assert script.load() is __main__.main


def test_no_command_imports_much_before_it_starts() -> None:
    """What a command leaves out, as PyTorch, must not be there before it can say so."""
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        f"for name in {list(COMMANDS)}:\n"
        "    import_module(f'mlc_rwkv_world.cli.{name}').parser()\n"
        "heavy = {'fastapi', 'huggingface_hub', 'numpy', 'torch', 'tqdm', 'tvm', 'tvm_ffi'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_version(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, shown in (("--help", "usage: "), ("--version", f"mlc-rwkv-world {__version__}")):
        with pytest.raises(SystemExit) as ended:
            command(name, option)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(shown)


def test_no_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["biuld"], "Did you mean python -m mlc_rwkv_world build?"),
        (["chat", "--temprature", "1"], "Did you mean --temperature?"),
        (["build", "--hf-path", "x", "--use-cache", "2"], "choose from 0, 1"),
        (["completion", "bsh"], "Did you mean bash?"),
    ],
)
def test_slips_are_told_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = command(*arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert meant in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("program", ["rwkv-world", "mlc_chat_cli"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_scripts_of_their_shell(
    shell: str, program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("completion", shell, "--program", program) == 0
    script = capsys.readouterr().out
    for word in ("--temperature", *(COMMANDS if program == "rwkv-world" else ())):
        assert word in script or word.removeprefix("--") in script
    path = tmp_path / "script"
    path.write_text(script)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", path], check=False).returncode == 0


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("completion", "bash")
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = (
        'source "$1"; COMP_WORDS=(rwkv-world per); COMP_CWORD=1; COMP_LINE="rwkv-world per"; '
        'function=$(complete -p rwkv-world | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); '
        '"$function"; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", ask, "bash", tmp_path / "script"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "perplexity"


@pytest.mark.slow
def test_pull_list_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = write_hf_bin(tmp_path / "served", random_world(num_hidden_layers=2, hidden_size=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "own"))
    with HubServer({REPO: served}) as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        assert command("list") == 0
        assert "There is none yet" in capsys.readouterr().out
        assert command("pull", REPO) == 0
    folder = tmp_path / "dist" / "models" / "RWKV-4-World-tiny"
    assert capsys.readouterr().out == "dist/models/RWKV-4-World-tiny\n"
    (tmp_path / "dist" / "models" / "notes").mkdir()
    assert command("list", "--json") == 0
    first, other = json.loads(capsys.readouterr().out)
    assert (first["kind"], first["name"], first["version"]) == ("checkpoint", folder.name, 4)
    assert first["format"] == "float32"
    assert first["size"] == (folder / "pytorch_model.bin").stat().st_size
    assert (other["name"], other["version"]) == ("notes", None)
    assert command("list") == 0
    assert "RWKV-4-World-tiny  RWKV-4" in capsys.readouterr().out
    # Nobody was asked, and nobody downloaded the other.
    assert command("remove", "RWKV-4-World-tiny") == 2
    assert "--yes removes it" in capsys.readouterr().err
    assert command("remove", "notes", "--yes") == 3
    assert command("remove", "RWKV-4-World-tiny", "--yes") == 0
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["notes"]


@pytest.mark.slow
def test_an_artifact_is_listed_and_goes_on_with_a_text(
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = demo_artifact("q4f16_1")
    assert command("list", "--json") == 0
    (entry,) = [e for e in json.loads(capsys.readouterr().out) if e["path"] == str(folder)]
    assert (entry["kind"], entry["version"], entry["format"]) == ("artifact", 4, "q4f16_1")
    (tmp_path / "text").write_text(f"User: {FRANCE}\n\nAssistant:")
    asked = [str(tmp_path / "text"), "--top-k", "1", "--max-tokens", "40", "--stop", "\n\n"]
    assert command("complete", folder.name, *asked) == 0
    assert capsys.readouterr().out == " The capital of France is Paris.\n"
    done = subprocess.run(
        [sys.executable, "-m", "mlc_rwkv_world", "complete", folder, "--top-k", "1", "--stop", "."],
        input=f"User: {FRANCE}\n\nAssistant:",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == " The capital of France is Paris\n"


@pytest.mark.slow
def test_only_what_was_built_here_as_it_was_built_is_removed(
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlc_rwkv_world.artifact.registry import register

    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "own"))
    folder = shutil.copytree(demo_artifact("q4f16_1"), tmp_path / "copy")
    assert command("remove", str(folder), "--yes") == 3
    assert register(folder)
    (folder / "SHA256SUMS").write_bytes(b"")
    assert command("remove", "copy", "--yes") == 2
    assert "was changed since you built it" in capsys.readouterr().err
    assert register(folder)
    assert command("remove", "copy", "--yes") == 0
    assert not folder.exists()


def test_every_command_is_a_module() -> None:
    for name in COMMANDS:
        module = import_module(f"mlc_rwkv_world.cli.{name}")
        assert module.parser("x").prog == "x"
