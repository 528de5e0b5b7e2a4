"""Keys and completion of a chat's lines, without a terminal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlc_rwkv_world.cli import terminal

COMMANDS: Any = SimpleNamespace(
    names=["help", "history", "load", "save", "set", "think"],
    chat=SimpleNamespace(template=SimpleNamespace(modes={"off": 0, "short": 0, "on": 0})),
)


def typed(keys: str) -> str:
    """The line that comes of these keys."""
    with create_pipe_input() as stream:
        session: PromptSession[str] = PromptSession(
            input=stream,
            output=DummyOutput(),
            completer=terminal._completer(COMMANDS),
            complete_while_typing=False,
            key_bindings=terminal._keys(),
        )
        stream.send_text(keys)
        return session.prompt("User: ")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("/hist\t\r", "/history"),
        ("/set top_k\t4\r", "/set top_k=4"),
        ("/set temp\t0.3\r", "/set temperature=0.3"),
        ("/think s\t\r", "/think short"),
        # Several could be meant; and what is no command is left alone.
        ("/h\t\r", "/h"),
        ("hist\t\r", "hist"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\n", "one"),
    ],
)
def test_keys(keys: str, line: str) -> None:
    assert typed(keys) == line


def test_files(tmp_path: Path) -> None:
    for name in ("only one.state", "steers\x1b[2J", "steers\u202e"):
        (tmp_path / name).touch()
    assert typed(f"/load {tmp_path}/on\t\r") == f"/load {tmp_path}/only one.state"
    # Names that could steer the terminal are not offered.
    assert typed(f"/load {tmp_path}/st\t\r") == f"/load {tmp_path}/st"


def test_a_paste_is_one_message() -> None:
    lines = "a line of many\n" * 300
    assert typed(f"\x1b[200~{lines}\x1b[201~\r") == lines
