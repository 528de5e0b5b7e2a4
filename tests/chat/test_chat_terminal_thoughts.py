"""What a person sees of thoughts, templates and states, in a terminal and in pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.slow

SCRIPTED = [sys.executable, str(Path(__file__).with_name("scripted.py"))]
THINKING = ">\nOne step.\n\nAnother.\n</think>\n\nIt is so.\n\n"
ANSWER = ">\nNo.\n\n"
LONG = ">\n" + "Wait. " * 400
FRANCE = "What is the capital of France?"
GREEDY = ["--temperature", "0", "--presence-penalty", "0", "--frequency-penalty", "0"]


@pytest.fixture(scope="session")
def model(demo_artifact: Callable[[str], Path]) -> str:
    return str(demo_artifact("q0f32"))


@pytest.fixture
def scripted(model: str, tmp_path: Path) -> Callable[..., list[str]]:
    """The command of a program whose model says these texts."""

    def command(texts: list[str], *arguments: str) -> list[str]:
        file = tmp_path / "texts.json"
        file.write_text(json.dumps(texts))
        return [*SCRIPTED, str(file), "--model", model, *arguments]

    return command


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str], **environment: str) -> None:
        plain = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": ""}
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            env=os.environ | plain | environment,
            timeout=60,
            dimensions=(40, 200),
        )
        self.child.delaybeforesend = None

    def ready(self) -> str:
        """Wait for the prompt; what came before it."""
        self.child.expect_exact("User:")
        before: bytes = self.child.before
        self.child.expect_exact("\x1b[?25h")
        return before.decode()

    def say(self, line: str, last: str) -> str:
        """What is shown after a line up to the end of `last`; then the program waits again."""
        self.child.send(line.encode() + b"\r")
        self.child.expect_exact(last)
        shown = str(self.child.before + self.child.after, "utf-8")
        self.ready()
        # The editor draws the line once more before it lets go of the terminal.
        return shown.rpartition("\x1b[?2004l")[2].replace("\r\n", "\n")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(command: list[str], **environment: str) -> Terminal:
        opened.append(Terminal(command, **environment))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.child.close(force=True)


def test_thoughts_are_dim_and_answers_are_not(
    terminal: Callable[..., Terminal], scripted: Callable[..., list[str]]
) -> None:
    chat = terminal(scripted([THINKING, ANSWER], "--template", "g1", "--think", "on"))
    assert "template g1, thinking on. /help lists the commands." in chat.ready()
    shown = chat.say("Is it?", "so.")
    thought, _, answer = shown.rpartition("\x1b[22m")
    assert re.sub(r"\x1b\[(1|22?)m", "", thought).endswith("Assistant: One step.\n\nAnother.")
    assert answer == "\nIt is so."
    assert chat.say("/think off", "/think HOW.").endswith(
        "Thinking is off. It can be off, short, on: /think HOW."
    )
    shown = chat.say("Is it?", "No.")
    assert shown.endswith("Assistant: \x1b[22mNo.") and "\x1b[2m" not in shown
    chat.say("/think much", "Thinking is 'much'; it can be off, short, on.")
    chat.say("/think", "Thinking is off.")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_thoughts_have_a_mark_where_there_are_no_colours(
    terminal: Callable[..., Terminal],
    scripted: Callable[..., list[str]],
    environment: dict[str, str],
) -> None:
    command = scripted([THINKING], "--template", "g1", "--think", "on", "--prompt", "Is it?")
    child = terminal(command, **environment).child
    child.expect(pexpect.EOF)
    shown = child.before.decode().replace("\r\n", "\n")
    assert shown == "[thought: One step.\n\nAnother.]\nIt is so.\n"


def test_an_interrupted_thought_leaves_the_terminal_as_it_was(
    terminal: Callable[..., Terminal], scripted: Callable[..., list[str]]
) -> None:
    chat = terminal(scripted([LONG], "--template", "g1", "--think", "on"))
    chat.ready()
    chat.child.send(b"Talk.\r")
    chat.child.expect_exact("Wait")
    chat.child.sendintr()
    shown = chat.child.before.decode() + "Wait" + chat.ready()
    # Who speaks is bold, and ends as what is dim does.
    shown = shown.partition("Assistant: \x1b[22m")[2]
    assert shown.count("\x1b[2m") == shown.count("\x1b[22m") > 0
    assert shown.rpartition("\x1b[22m")[2].removeprefix("^C").startswith("\r\n\x1b[")


def test_pipes_get_answers_alone(scripted: Callable[..., list[str]]) -> None:
    command = scripted([THINKING], "--template", "g1", "--think", "on", "--prompt", "Is it?")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "It is so.\n", "")


def test_a_model_without_thoughts_says_so_in_one_sentence(
    terminal: Callable[..., Terminal], scripted: Callable[..., list[str]]
) -> None:
    chat = terminal(scripted([]))
    assert "template world. /help" in chat.ready()
    sentence = "The template world has no thinking; g1 has."
    for line in ("/think", "/think on"):
        chat.say(line, sentence)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--template", "x"], 2, "no template 'x'; there are world, g1, instruction, qa"),
        (["--think", "on"], 2, "The template world has no thinking; g1 has."),
        (["--system", "Be brief."], 2, "The template world has no System text; g1 has."),
        (["--state", "/no/such/state"], 3, "/no/such/state does not exist"),
        (["--state", __file__], 8, "is no state file"),
    ],
)
def test_errors_are_one_message(
    scripted: Callable[..., list[str]], arguments: list[str], status: int, message: str
) -> None:
    command = scripted([], *arguments, "--prompt", "Hi")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (status, "")
    assert message in found.stderr
    assert found.stderr.startswith("mlc_chat_cli: error: ") and "Traceback" not in found.stderr


def test_a_conversation_goes_on_from_a_file(model: str, tmp_path: Path) -> None:
    chat = [sys.executable, "-m", "mlc_rwkv_world", "chat", "--model", model, *GREEDY]
    file = tmp_path / "talk"

    def run(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*chat, *arguments]
        return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)

    assert run(f"{FRANCE}\n/save {file}\n").returncode == 0
    found = run("/stats\n/save " + f"{file}2\n", "--state", str(file))
    assert (found.returncode, found.stderr) == (0, "")
    assert f"{file}2: 1 turns" in run(f"/load {file}2\n").stdout
    refused = run("", "--state", str(file), "--template", "g1", "--system", "Be brief.")
    assert refused.returncode == 2
    assert "has begun already" in refused.stderr
