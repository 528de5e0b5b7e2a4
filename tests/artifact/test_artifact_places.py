"""Paths as people write them, homes that are not there, and names that are not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact import registry
from mlc_rwkv_world.artifact.places import expanded, utf8_path
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.tokenizer import PACKAGED_VOCABULARY, WorldTokenizer

# A process whose user has neither an entry nor a HOME.
HOMELESS = """
import os, pwd
def absent(uid): raise KeyError(uid)
pwd.getpwuid = absent
for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "MLC_RWKV_WORLD_HOME"):
    os.environ.pop(name, None)
"""


def test_a_home_is_put_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a b") == tmp_path / "a b"
    assert expanded(Path("~/a")) == tmp_path / "a"
    assert expanded("./~/a") == Path("./~/a")
    assert expanded("~root").is_absolute()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x", "~nosuchuser stands for is not known"),
        ("a\0b", "holds a NUL"),
        ("a" * 256, "256 characters"),
        ("é" * 200, "at most 255 bytes"),
        ("a/" * 3000, "6000 characters"),
        ("half a character \ud800", "no name of a file here can hold"),
    ],
)
def test_what_names_no_file(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        expanded(path)
    assert len(str(error.value)) < 300


def test_environment_variables_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(registry.HOME_VARIABLE, "~/own")
    assert registry.home() == tmp_path / "own"
    monkeypatch.delenv(registry.HOME_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", "~/data")
    assert registry.home() == tmp_path / "data" / "mlc-rwkv-world"
    monkeypatch.setenv(registry.HOME_VARIABLE, "~nosuchuser/x")
    assert registry.home() is None
    assert registry.registered() == []
    assert not registry.register(tmp_path)


def test_a_record_that_fails_fails_no_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "list_digest", broken)
    assert not registry.register(tmp_path)


def test_without_a_home(tmp_path: Path) -> None:
    """Neither importing TVM nor looking for a name needs one."""
    code = f"""{HOMELESS}
from mlc_rwkv_world.cli.start import start
start()
import mlc_rwkv_world, tvm
from mlc_rwkv_world.cli import chat, doctor
print(doctor.main([]), chat.main(["--model", "nothing-here", "--prompt", "x"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 3", done.stderr
    assert "cannot be imported" not in done.stdout
    assert "No artifact named 'nothing-here'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_bytes_also_in_cpp(tmp_path: Path) -> None:
    """The tokenizer reads such a file, and names it where it is damaged."""
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.write_bytes(PACKAGED_VOCABULARY.read_bytes())
    assert WorldTokenizer.from_file(path).token_count == 65529
    path.write_bytes(b"no vocabulary")
    with pytest.raises(Exception, match=r"caf\\udce9") as error:
        WorldTokenizer.from_file(path)
    assert type(error.value).__name__ == "VocabularyError"


def test_a_path_for_others(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / os.fsdecode(b"caf\xe9")
    odd.write_bytes(b"x")
    with utf8_path(plain) as path:
        assert path == plain
    with utf8_path(odd) as path:
        assert str(path).encode()
        assert path.read_bytes() == b"x"
    assert not path.is_symlink()
    assert odd.exists()
