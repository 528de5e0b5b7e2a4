"""No character that steers a terminal leaves the program, wherever it came from."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mlc_rwkv_world import console
from mlc_rwkv_world.characters import printable, prose
from mlc_rwkv_world.cli import status, verify
from mlc_rwkv_world.errors import CheckpointError

EVERY = "".join(map(chr, range(sys.maxunicode + 1)))
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
# Unicode calls these bidirectional controls as well; their own class is that of letters.
MARKS = {"\u061c", "\u200e", "\u200f"}
EVIL = "evil\x1b]0;OWNED\x07\u202egnp\x9b31m\rx"
TWICE = f"{EVIL}\n{EVIL}"


def steers(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in DIRECTIONS
        or character in MARKS
    )


@pytest.mark.slow
def test_nothing_that_steers_passes() -> None:
    assert {c for c in prose(EVERY) if steers(c)} == {"\n", "\t"}
    assert not {c for c in printable(EVERY) if steers(c)}
    assert printable(printable(EVERY[:0x3000])) == printable(EVERY[:0x3000])


def test_what_people_write_is_untouched() -> None:
    written = "Zoë 中文\u3000。 می\u200cخواهم שלום 👩\u200d💻 a\u00a0b\n\tx"
    assert prose(written) == written
    assert printable("Zoë 中文 שלום") == "Zoë 中文 שלום"


def test_every_way_out_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(EVIL, TWICE)
    console.say_json({"name": EVIL})
    console.utter(EVIL)
    console.complain(TWICE, "another line")
    console.complain(f"error: {CheckpointError(TWICE)}")
    status.report("x", CheckpointError(TWICE, lines=[TWICE, "at last"]))
    status.report("x", FileNotFoundError(2, "No such file", TWICE))
    try:
        raise ValueError(EVIL)
    except ValueError:
        console.complain_with_traceback()
    shown = capsys.readouterr()
    assert not {c for c in shown.out + shown.err if steers(c)} - {"\n"}
    # A name with a line feed makes no second line.
    assert shown.out.splitlines()[1].count("evil") == 2
    assert [line.count("evil") for line in shown.err.splitlines()[:7]] == [2, 0, 2, 2, 2, 0, 2]
    assert json.loads(shown.out.splitlines()[2]) == {"name": EVIL}


def test_bars_are_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal, after whatever time."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 200, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(console, "_PATIENCE", 0)
        bar = console.Bar(unit="tok", what="reading\u202e")
        bar.show(1, 3, "a")
        # It shows itself again after a tenth of a second.
        time.sleep(0.2)
        bar.show(2, 3, f"a\x1b[31mb\n{EVIL}")
        os.set_blocking(master, False)
        shown = ""
        with suppress(BlockingIOError):
            while True:
                shown += os.read(master, 1 << 16).decode()
        monkeypatch.undo()
    os.close(master)
    assert "67%" in shown
    assert r"a\x1b[31mb" in shown
    assert not {c for c in shown if steers(c)} - {"\r", "\n"}


def test_a_bar_costs_nothing_where_all_is_done_at_once() -> None:
    code = "import sys; from mlc_rwkv_world.console import Bar; b = Bar(); b.show(1, 1); b.close()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'tqdm' not in sys.modules"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "inspect", "bench", "perplexity", "build", "chat"])
def test_commands_quote_names_safely(command: str, tmp_path: Path) -> None:
    """In messages and in tracebacks."""
    (tmp_path / EVIL).mkdir()
    arguments = {
        "build": ["--hf-path", f"./{EVIL}", "--artifact-path", str(tmp_path)],
        "chat": ["--model", f"./{EVIL}", "--prompt", "x"],
        "perplexity": [f"./{EVIL}", "--text", f"./{EVIL}"],
    }.get(command, [f"./{EVIL}"])
    result = subprocess.run(
        [sys.executable, "-m", "mlc_rwkv_world", command, *arguments, "--debug"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    shown = (result.stdout + result.stderr).decode()
    assert result.returncode != 0
    assert "evil" in shown
    assert not {c for c in shown if steers(c)} - {"\n"}, repr(shown)


def test_options_that_are_none_are_quoted_safely(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify.main(["model", f"--{EVIL}"], "x")
    shown = capsys.readouterr().err
    assert "evil" in shown
    assert not {c for c in shown if steers(c)} - {"\n"}


@pytest.mark.slow
def test_an_artifact_from_a_stranger(demo_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    """Its folder's name, its list and what its library says of itself."""
    folder = tmp_path / EVIL
    shutil.copytree(demo_artifact("q4f16_1"), folder)
    (library,) = folder.glob("*.so")
    data = library.read_bytes()
    version = data[data.index(b'"tvm": "') :].split(b'"')[3]
    lie = b"\\u001b[31m".ljust(len(version), b"A")[: len(version)]
    library.write_bytes(data.replace(b'"tvm": "' + version, b'"tvm": "' + lie))
    (folder / "SHA256SUMS").write_bytes(b"0" * 64 + b"  params/\x1b[31m\xe2\x80\xae\n")
    for command in (["verify", str(folder)], ["doctor", str(folder)]):
        result = subprocess.run(
            [sys.executable, "-m", "mlc_rwkv_world", *command],
            capture_output=True,
            timeout=120,
            check=False,
        )
        shown = (result.stdout + result.stderr).decode()
        assert r"\x1b" in shown
        assert not {c for c in shown if steers(c)} - {"\n"}, repr(shown)
