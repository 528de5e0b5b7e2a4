"""What is a command, what is a text, and what a mistyped command is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.chat.commands import HELP, Commands, Line, read
from mlc_rwkv_world.errors import NotFoundError, UsageError
from mlc_rwkv_world.runtime import Engine


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Hello", "Hello"),
        ("  1/2 or /3", "  1/2 or /3"),
        ("/", "/"),
        ("/ means what?", "/ means what?"),
        ("/usr/bin is what?", "/usr/bin is what?"),
        ("/etc/passwd", "/etc/passwd"),
        ("/* a comment */", "/* a comment */"),
        ("/2", "/2"),
        ("//imagine a cat", "/imagine a cat"),
        ("// a comment", "/ a comment"),
        ("///", "//"),
        ("/save x\nand more", "/save x\nand more"),
    ],
)
def test_texts(line: str, text: str) -> None:
    assert read(line) == Line(text)


@pytest.mark.parametrize(
    ("line", "command", "argument"),
    [
        ("/help", "help", ""),
        (" /save  a b.state \n", "save", "a b.state"),
        ("/HELP", "HELP", ""),
        ("/help?", "help?", ""),
        ("/imagine a cat", "imagine", "a cat"),
        ("/помощь", "помощь", ""),
    ],
)
def test_commands(line: str, command: str, argument: str) -> None:
    assert read(line) == Line(None, command, argument)


@pytest.fixture
def commands(engine: Engine) -> Commands:
    return Commands(Chat(engine), lambda model: Chat(engine))


SLIPS = {"HELP": "help", "help?": "help", "exti": "exit", "Save": "save", "stat": "stats"}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_told_what_was_meant(commands: Commands, name: str) -> None:
    with pytest.raises(UsageError) as error:
        commands.run(name, "")
    assert f"There is no command /{name}. The nearest is /{SLIPS[name]}." in str(error.value)
    assert "two slashes" in str(error.value)


def test_what_resembles_nothing(commands: Commands) -> None:
    with pytest.raises(UsageError) as error:
        commands.run("dance", "")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["reset", "exit", "quit", "stats", "help"])
def test_a_sentence_is_no_command(commands: Commands, name: str) -> None:
    """`/reset the router` must not lose the conversation."""
    with pytest.raises(UsageError, match=f"write //{name}"):
        commands.run(name, "the router, please")
    assert not commands.ended


def test_help_lists_every_command(commands: Commands) -> None:
    assert commands.run("help", "") == HELP
    listed = {line.split()[0].strip("/") for line in HELP.splitlines() if line.startswith("/")}
    assert listed - {"TEXT"} == {*commands.names} - {"quit"}


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_names_of_files(
    commands: Commands, quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `~`, spaces and quotes, as people write them; and as bytes that are no UTF-8."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b.state", "c.state", "caf\udce9.state"):
        given = f"{quote}~/{name}{quote}"
        assert commands.run("save", given).startswith("Saved to ")
        assert (tmp_path / name).is_file()
        assert "0 turns" in commands.run("load", given)


def test_names_that_no_file_has(commands: Commands) -> None:
    for command in ("save", "load"):
        with pytest.raises(UsageError, match="is no path: it has 5000 characters"):
            commands.run(command, "a" * 5000)
        with pytest.raises(UsageError, match="~nosuchuser stands for is not known"):
            commands.run(command, "~nosuchuser/x")
        with pytest.raises(UsageError, match="needs the name of a file"):
            commands.run(command, '""')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF a checkpoint", "begins with b'GGUF.* and is no state file"),
        (b"PK\x03\x04 a checkpoint", "begins from no tuned state"),
        (b"", "it is empty"),
        (b"\x90\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"mlc-rwkv-world state"}}', "another"),
    ],
)
def test_load_names_what_it_was_given(
    commands: Commands, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Exception, match=message):
        commands.run("load", str(tmp_path / "x"))
    with pytest.raises(NotFoundError):
        commands.run("load", str(tmp_path / "y"))


def test_set_shows_and_changes(commands: Commands) -> None:
    assert "temperature=1.0, top_p=0.3" in commands.run("set", "")
    assert "temperature=0.5" in commands.run("set", "temperature=0.5")
    assert "top_k=4" in commands.run("set", "top-k 4")
    assert "max_tokens=9" in commands.run("set", "max_tokens = 9")
    for text, message in (
        ("temprature=1", "Did you mean temperature?"),
        ("the table", "'the' cannot be set"),
        ("top_k=much", "top_k is 'much'; give a number"),
        ("top_p=7", "top_p is 7.0"),
    ):
        with pytest.raises(UsageError) as error:
            commands.run("set", text)
        assert message in str(error.value)


def test_retry_undo_and_history(commands: Commands) -> None:
    with pytest.raises(UsageError, match="nothing to take back"):
        commands.run("retry", "")
    assert commands.run("history", "") == "Nothing was said yet."
    answer = "".join(commands.chat.ask("Hello"))
    assert commands.run("history", "") == f"User: Hello\nAssistant: {answer}"
    assert commands.run("retry", "") == ""
    assert commands.asked == "Hello"
    assert commands.chat.turns == 0
    "".join(commands.chat.ask("Hello"))
    assert commands.run("undo", "") == "Taken back: Hello"
    assert commands.run("history", "") == "Nothing was said yet."


def test_system_begins_anew(engine: Engine) -> None:
    commands = Commands(Chat(engine, template="instruction"), lambda _: Chat(engine))
    with pytest.raises(UsageError, match="System"):
        commands.run("system", "Be brief.")
    commands.chat = Chat(engine, template="g1")
    "".join(commands.chat.ask("Hello"))
    assert commands.run("system", "Be brief.") == "A new conversation, with this System text."
    assert commands.chat.turns == 0
    assert "Be brief." in commands.chat.template.primer
