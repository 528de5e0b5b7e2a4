"""`mlc_chat_cli` in a real terminal, in pipes, and when things go wrong."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
SCRIPT = Path(sys.executable).with_name("mlc_chat_cli")
# A checkout that is not installed has no script; the module is the same program.
CLI = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "mlc_rwkv_world", "chat"]
GREEDY = ["--temperature", "0", "--presence-penalty", "0", "--frequency-penalty", "0"]
# Every token is as likely as any other; with this seed the answer has 3581 tokens, seconds of them.
RAVING = ["--temperature", "100", "--top-p", "1", "--seed", "5"]


@pytest.fixture(scope="session")
def model(demo_artifact: Callable[[str], Path]) -> str:
    return str(demo_artifact("q0f32"))


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    options = {"text": True, "encoding": "utf-8", "timeout": 60, **options}
    return subprocess.run([*CLI, *arguments], capture_output=True, check=False, **options)


class Terminal:
    """The program in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child = pexpect.spawn(
            CLI[0],
            [*CLI[1:], *arguments],
            env=environment,
            timeout=60,
            dimensions=(40, 200),
        )
        self.child.delaybeforesend = None
        self.seen = b""

    def expect(self, text: str) -> bytes:
        """Wait for `text` and give what came before it."""
        self.child.expect_exact(text.encode())
        before: bytes = self.child.before
        self.seen += before + self.child.after
        return before

    def ready(self) -> bytes:
        """Wait for the prompt and its cursor; what came before it."""
        before = self.expect("User:")
        self.expect("\x1b[?25h")
        return before

    def say(self, line: str) -> None:
        self.child.send(line.encode() + b"\r")

    def ends(self) -> int:
        self.child.expect(pexpect.EOF)
        self.seen += self.child.before
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.child.close(force=True)


def test_a_conversation(terminal: Callable[..., Terminal], model: str, tmp_path: Path) -> None:
    chat = terminal("--model", model, *GREEDY)
    chat.ready()
    chat.say(FRANCE)
    chat.expect("Assistant: ")
    chat.expect(PARIS)
    chat.ready()
    chat.say("中国的首都是哪里？")
    chat.expect("中国的首都是北京。")
    chat.ready()
    chat.say("/stats")
    chat.child.expect(rb"prefill: \d+\.\d tok/s, decode: \d+\.\d tok/s")
    chat.ready()
    file = tmp_path / "talk"
    for command, answer in [
        (f"/save {file}", f"Saved to {file}."),
        ("/reset", "A new conversation."),
        (f"/load {file}", "2 turns"),
        (f"/load {file}x", "does not exist"),
        ("/save", "needs the name of a file"),
        (f"/save {tmp_path}/no/such/place", "No such file or directory"),
        ("/help", "/reload [MODEL]"),
        ("/dance", "There is no command /dance"),
        ("/reload", "Loaded "),
        ("/reload nothing-here", "No artifact named 'nothing-here'"),
    ]:
        chat.say(command)
        chat.expect(answer)
        chat.ready()
    chat.say(FRANCE)
    chat.expect(PARIS)
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0
    assert "\N{REPLACEMENT CHARACTER}" not in chat.seen.decode("utf-8")


def test_answers_stream(terminal: Callable[..., Terminal], model: str) -> None:
    """Pieces come one after another, not the whole answer at its end."""
    chat = terminal("--model", model, *RAVING, "--max-tokens", "100000")
    chat.ready()
    chat.say(FRANCE)
    chat.expect("Assistant: ")
    sizes = []
    for _ in range(3):
        time.sleep(0.1)
        sizes.append(len(chat.child.read_nonblocking(100_000, timeout=10)))
    assert all(sizes)


def test_interrupt_stops_the_answer_and_not_the_program(
    terminal: Callable[..., Terminal], model: str
) -> None:
    chat = terminal("--model", model, *RAVING)
    chat.ready()
    for _ in range(3):
        chat.say("Talk.")
        chat.expect("Assistant: ")
        chat.child.read_nonblocking(10, timeout=10)
        chat.child.sendintr()
        chat.ready()
    chat.say("/stats")
    chat.child.expect(rb"decode: \d+")
    chat.ready()
    chat.child.sendintr()
    chat.ready()
    chat.child.kill(signal.SIGINT)
    chat.ready()
    chat.child.sendeof()
    assert chat.ends() == 0


@pytest.mark.slow
def test_impatient_interrupts(terminal: Callable[..., Terminal], model: str) -> None:
    chat = terminal("--model", model, *RAVING)
    chat.ready()
    chat.say("Talk.")
    chat.expect("Assistant: ")
    for _ in range(5):
        chat.child.kill(signal.SIGINT)
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0


def test_end_of_input_ends_it(terminal: Callable[..., Terminal], model: str) -> None:
    chat = terminal("--model", model)
    chat.ready()
    chat.child.sendeof()
    assert chat.ends() == 0


@pytest.mark.slow
def test_a_paste_of_several_lines_is_one_message(
    terminal: Callable[..., Terminal], model: str
) -> None:
    chat = terminal("--model", model, *GREEDY)
    chat.ready()
    chat.child.send(b"\x1b[200~" + FRANCE[:12].encode() + b"\n\n" + b"/exit\n\x1b[201~")
    chat.child.send(b"\r")
    chat.expect("Assistant: ")
    rest = chat.ready()
    assert b"Assistant" not in rest
    chat.say("/exit")
    assert chat.ends() == 0


def test_a_new_line_is_no_end(terminal: Callable[..., Terminal], model: str) -> None:
    chat = terminal("--model", model, *GREEDY)
    chat.ready()
    chat.child.send(FRANCE[:12].encode() + b"\x1b\r" + b"/exit\r")
    chat.expect("Assistant: ")
    chat.ready()
    chat.say("/history")
    chat.expect(f"User: {FRANCE[:12]}")
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0


def test_a_long_paste_is_one_message(terminal: Callable[..., Terminal], model: str) -> None:
    chat = terminal("--model", model, *GREEDY, "--max-tokens", "3")
    chat.ready()
    lines = b"a line of many\n" * 300
    chat.child.send(b"\x1b[200~" + lines + b"\x1b[201~\r")
    chat.expect("Assistant: ")
    chat.ready()
    chat.say("/stats")
    chat.expect("prefill: ")
    chat.ready()
    chat.say("/undo")
    chat.expect("Taken back: a line of many")
    chat.ready()
    chat.say("/undo")
    chat.expect("nothing to take back")
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0


def test_tab_completes_commands_settings_and_files(
    terminal: Callable[..., Terminal], model: str, tmp_path: Path
) -> None:
    chat = terminal("--model", model, *GREEDY)
    chat.ready()
    chat.child.send(b"/hist\t")
    chat.expect("ory")
    chat.say("")
    chat.expect("Nothing was said yet.")
    chat.ready()
    chat.child.send(b"/set top_k\t")
    chat.expect("=")
    chat.say("4")
    chat.expect("top_k=4")
    chat.ready()
    (tmp_path / "only-one.state").write_bytes(b"none")
    chat.child.send(f"/load {tmp_path}/only\t".encode())
    chat.expect("-one.state")
    chat.say("")
    chat.expect("is no state")
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0


@pytest.mark.slow
def test_history_goes_on_in_the_next_run(
    terminal: Callable[..., Terminal],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path))
    kept = tmp_path / "history"
    for line, answer in ((b"/stats\r", "prefill: "), (b"\x1b[A\x1b[A\r", "prefill: ")):
        chat = terminal("--model", model, *GREEDY)
        chat.ready()
        chat.child.send(line)
        chat.expect(answer)
        chat.ready()
        chat.say("/exit")
        assert chat.ends() == 0
    assert kept.read_bytes().count(b"+/stats\n") == 2
    assert kept.stat().st_mode & 0o777 == 0o600
    # What --prompt says is no line that was typed.
    run("--model", model, "--prompt", FRANCE, *GREEDY)
    assert FRANCE.encode() not in kept.read_bytes()
    kept.unlink()
    monkeypatch.setenv("MLC_RWKV_WORLD_HISTORY", "off")
    chat = terminal("--model", model, *GREEDY)
    chat.ready()
    chat.say("/exit")
    assert chat.ends() == 0
    assert not kept.exists()


@pytest.mark.parametrize(
    ("variables", "bold"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_where_they_are_wanted(
    model: str, variables: dict[str, str], bold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    child = pexpect.spawn(
        CLI[0],
        [*CLI[1:], "--model", model, *GREEDY],
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **variables},
        timeout=60,
        dimensions=(40, 200),
    )
    child.expect_exact("User:")
    child.send(f"{FRANCE}\r")
    child.expect_exact(PARIS)
    shown = child.before
    child.close(force=True)
    assert (b"\x1b[1mAssistant: \x1b[22m" in shown) is bold
    assert b"Assistant: " in shown


def test_stop_texts_end_an_answer(model: str) -> None:
    result = run(model, "--prompt", FRANCE, *GREEDY, "--stop", " is", "--stop", "x")
    assert (result.returncode, result.stdout) == (0, "The capital of France\n"), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| cat > {}", "> {}", "> {} 2> /dev/null"])
def test_results_elsewhere_leave_the_talk_on_the_terminal(
    redirection: str, model: str, tmp_path: Path
) -> None:
    """Greeting, prompts and what commands say; the answers alone go where the output does."""
    file = tmp_path / "answers"
    child = pexpect.spawn(
        "bash",
        ["-c", f'"$@" {redirection.format(file)}', "bash", *CLI, "--model", model, *GREEDY],
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        timeout=300,
        dimensions=(40, 200),
    )
    child.delaybeforesend = None
    child.expect_exact("/help lists the commands.")
    for line, answer in ((FRANCE, ""), ("/stats", "prefill: "), ("/reset", "A new")):
        child.expect_exact("User:")
        child.expect_exact("\x1b[?25h")
        child.send(f"{line}\r")
        child.expect_exact(answer)
    child.expect_exact("User:")
    child.expect_exact("\x1b[?25h")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert file.read_text() == f"{PARIS}\n"


@pytest.mark.slow
def test_raving_never_shows_half_a_character(model: str) -> None:
    """Random tokens by the hundred: what is shown is valid UTF-8, without control characters."""
    shown = 0
    for seed in range(20):
        options = ["--max-tokens", "1000", *RAVING, "--seed", str(seed), "--prompt", "Go"]
        result = run("--model", model, *options, text=False, encoding=None)
        text = result.stdout.decode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        # One token in some two thousand holds a blank line, which ends the answer.
        shown += len(text)
        if shown > 1000:
            return
    raise AssertionError(f"{shown} characters in twenty answers")


def test_prompt_answers_once(model: str) -> None:
    result = run("--model", model, "--prompt", FRANCE, "--seed", "0", *GREEDY)
    assert (result.returncode, result.stdout, result.stderr) == (0, PARIS + "\n", "")


def test_model_is_found_by_name_from_elsewhere(model: str, tmp_path: Path) -> None:
    name = Path(model).name
    result = run("--model", name, "--prompt", FRANCE, *GREEDY, cwd=tmp_path)
    assert result.stdout == PARIS + "\n", result.stderr


def test_evaluate(model: str) -> None:
    lengths = ["--eval-prompt-len", "100", "--eval-gen-len", "20"]
    result = run("--model", model, "--evaluate", *lengths)
    assert re.fullmatch(r"prefill: \d+\.\d tok/s, decode: \d+\.\d tok/s\n", result.stdout)
    assert run("--model", model, "--evaluate", "--eval-gen-len", "0").returncode == 2


def test_lines_from_a_pipe(model: str) -> None:
    lines = f"{FRANCE}\n\n/stats\n{FRANCE}".encode()
    result = run("--model", model, *GREEDY, input=lines, text=False, encoding=None)
    output = result.stdout.decode().splitlines()
    assert result.returncode == 0
    assert output[0] == PARIS
    assert output[1].startswith("prefill: ")
    assert len(output) == 3


@pytest.mark.slow
def test_a_line_of_a_megabyte(model: str) -> None:
    """It is read whole, 13108 tokens of it, and what follows is answered as ever."""
    message = "-" * (1 << 20)
    lines = f"{message}\n/stats\n/reset\n{FRANCE}\n/exit\n"
    result = run("--model", model, *GREEDY, "--max-tokens", "8", input=lines)
    assert (result.returncode, result.stderr) == (0, "")
    assert PARIS in result.stdout
    assert message[:200] not in result.stdout


def test_slips_in_a_pipe(model: str) -> None:
    lines = f"/HELP\n/help?\n//{FRANCE}\n"
    result = run("--model", model, *GREEDY, "--max-tokens", "8", input=lines)
    first, second = result.stderr.splitlines()
    assert "no command /HELP. The nearest is /help." in first
    assert "no command /help?. The nearest is /help." in second
    assert len(result.stdout.splitlines()) == 1


def test_a_bad_line_in_a_pipe(model: str) -> None:
    lines = b"\xff\xfe\n" + FRANCE.encode() + b"\n/dance\n"
    result = run("--model", model, *GREEDY, input=lines, text=False, encoding=None)
    assert result.stdout.decode() == PARIS + "\n"
    errors = result.stderr.decode().splitlines()
    assert "not valid UTF-8 (byte 0xff)" in errors[0]
    assert "no command /dance" in errors[1]
    assert result.returncode == 2


def test_a_reader_that_goes_away(model: str) -> None:
    process = subprocess.Popen(
        [*CLI, "--model", model, *RAVING, "--prompt", "Go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 128 + signal.SIGPIPE


def test_interrupt_ends_a_single_answer(model: str) -> None:
    process = subprocess.Popen(
        [*CLI, "--model", model, *RAVING, "--prompt", "Go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + signal.SIGINT, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Give --model NAME"),
        (["--model", "x", "y"], 2, "The model is given twice"),
        (["--model", "nothing-here"], 3, "No artifact named 'nothing-here'"),
        (["--temperature", "-1"], 2, "temperature is -1.0"),
        (["--top-p", "7"], 2, "top_p is 7.0"),
        (["--seed", "-4"], 2, "The seed is -4"),
        (["--max-tokens", "0"], 2, "max_tokens is 0"),
        (["--device", "toaster"], 2, "'toaster' is no device"),
        (["--device", "cuda:99"], 7, "no device cuda:99"),
        (["--model-lib-path", "/none.so"], 3, "/none.so does not exist"),
        (["--model-lib-path", __file__], 6, "cannot be loaded"),
        (["--prompt", ""], 2, "The message is empty"),
        (["--prompt", b"a\xff"], 2, "not valid UTF-8"),
    ],
)
def test_errors_are_one_message(
    model: str, arguments: list[Any], status: int, message: str
) -> None:
    asked = arguments if "--prompt" in arguments else [*arguments, "--prompt", "Hi"]
    if arguments and "--model" not in arguments:
        asked = ["--model", model, *asked]
    result = run(*asked)
    assert result.returncode == status
    assert message in result.stderr
    assert result.stderr.startswith("mlc_chat_cli: error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback(model: str) -> None:
    result = run("--model", model, "--top-p", "7", "--prompt", "Hi", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_version_and_help_need_no_model() -> None:
    assert re.fullmatch(r"mlc-rwkv-world \d+\.\d+\.\d+\n", run("--version").stdout)
    assert "--eval-prompt-len" in run("--help").stdout


@pytest.fixture
def runtime_only(tmp_path: Path) -> dict[str, str]:
    """An environment whose TVM has no compiler library."""
    import tvm

    shutil.copytree(
        Path(tvm.__file__).parent,
        tmp_path / "tvm",
        ignore=shutil.ignore_patterns("libtvm_compiler.*", "*.h", "*.cc", "__pycache__"),
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PYTHONPATH": path}


@pytest.mark.slow
def test_first_token_within_two_seconds_without_the_compiler(
    model: str, runtime_only: dict[str, str]
) -> None:
    """The best of four runs; where other work fills the machine, by the processor's clock."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    seconds = []
    for _ in range(4):
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            [*CLI, "--model", model, "--prompt", FRANCE, *GREEDY],
            stdout=subprocess.PIPE,
            bufsize=0,
            env=runtime_only,
        )
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.monotonic() - started
        output, _ = process.communicate(timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        seconds.append(used if busy else elapsed)
        assert (first + output).decode() == PARIS + "\n"
    assert min(seconds) < 2, seconds


def test_chatting_imports_little(model: str) -> None:
    code = f"""
import sys
from mlc_rwkv_world.cli.chat import main
status = main(["--model", {model!r}, "--prompt", "Hi", "--max-tokens", "1"])
loaded = {{"torch", "tvm.relax", "huggingface_hub", "prompt_toolkit", "transformers", "tqdm"}}
loaded &= {{name for name, module in sys.modules.items() if module is not None}}
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
sys.exit(f"{{status}} {{loaded}}" if status or loaded or "libtvm_compiler" in maps else 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
