"""Whole or not at all, with real processes that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact import atomic
from mlc_rwkv_world.artifact.atomic import locked, replacing_folder, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own, and wait for its first line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str], sign: int = signal.SIGKILL) -> None:
    process.send_signal(sign)
    process.communicate(timeout=30)


WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from mlc_rwkv_world.artifact.atomic import replacing_folder
with replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_file_is_replaced_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["file"]


def test_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_file(tmp_path / "file", b"one")
    assert names(tmp_path) == ["file"]


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with replacing_folder(target) as folder:
        (folder / "params").mkdir()
        (folder / "params" / "x").write_text("1")
        assert not target.exists()
    assert (target / "params/x").read_text() == "1"
    assert names(tmp_path / "deep") == ["model"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_older_folder_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    target = tmp_path / "model"
    for version in ("1", "2", "3"):
        with replacing_folder(target) as folder:
            (folder / version).write_text(version)
            if version == "1":
                assert not target.exists()
            else:
                assert names(target) == [str(int(version) - 1)]
        assert names(target) == [version]
    assert names(tmp_path) == ["model"]


def test_failure_inside_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with replacing_folder(target) as folder:
        (folder / "good").write_text("")

    def fail() -> None:
        with replacing_folder(target) as folder:
            (folder / "bad").write_text("")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert names(target) == ["good"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("older", [True, False])
def test_killed_writer_leaves_nothing_that_lasts(tmp_path: Path, older: bool) -> None:
    target = tmp_path / "model"
    if older:
        with replacing_folder(target) as folder:
            (folder / "good").write_text("")
    end(start(WRITE_AND_HANG, target))
    assert target.exists() == older
    assert any(name.endswith(".tmp") for name in names(tmp_path))
    with replacing_folder(target) as folder:
        (folder / "new").write_text("")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_killed_between_the_two_moves(tmp_path: Path) -> None:
    """Without an exchange in one step, the older folder is found again."""
    target = tmp_path / "model"
    code = """
import os, sys
from pathlib import Path
from mlc_rwkv_world.artifact import atomic
atomic._exchange = lambda a, b: False
target = Path(sys.argv[1])
with atomic.replacing_folder(target) as folder:
    (folder / "good").write_text("")
real = Path.rename
def rename(self, to):
    if self.name.endswith(".tmp"):
        os.kill(os.getpid(), 9)
    return real(self, to)
Path.rename = rename
with atomic.replacing_folder(target) as folder:
    (folder / "new").write_text("")
"""
    process = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    with locked(target):
        atomic.recover(target)
    assert names(target) == ["good"]
    assert names(tmp_path) == ["model"]


def test_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    target = tmp_path / "model"
    first = start(WRITE_AND_HANG, target)
    told = threading.Event()
    done = threading.Event()

    def second() -> None:
        with replacing_folder(target, told.set) as folder:
            (folder / "second").write_text("")
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert told.wait(10)
    time.sleep(0.2)
    assert not done.is_set()
    assert any(name.endswith(".tmp") for name in names(tmp_path)), "the first's work was cleared"
    end(first)
    thread.join(10)
    assert done.is_set()
    assert names(target) == ["second"]


def test_many_owners_of_one_lock_take_turns(tmp_path: Path) -> None:
    """The lock's file is removed by each owner; none may slip in beside another."""
    code = """
import sys, time
from pathlib import Path
from mlc_rwkv_world.artifact.atomic import locked
place = Path(sys.argv[1])
print("ready", flush=True)
for _ in range(100):
    with locked(place):
        count = int(place.read_text())
        time.sleep(0.0005)
        place.write_text(str(count + 1))
"""
    place = tmp_path / "count"
    place.write_text("0")
    processes = [start(code, place) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert place.read_text() == "300"
    assert names(tmp_path) == ["count"]


@pytest.mark.parametrize("target", ["elsewhere", "there", "."])
def test_a_lock_follows_no_link(tmp_path: Path, target: str) -> None:
    """Whoever gives a folder away could else have a file made, or waited for, anywhere."""
    (tmp_path / "there").write_text("mine")
    link = tmp_path / ".model.lock"
    link.symlink_to(tmp_path / target)
    with (
        pytest.raises(OSError, match=r"a link is in the place of a lock; remove it.*\.model\.lock"),
        locked(tmp_path / "model"),
    ):
        pass
    assert names(tmp_path) == [".model.lock", "there"]
    assert link.is_symlink()
    assert (tmp_path / "there").read_text() == "mine"


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".model.lock")
    message = "what is in the place of a lock is no file"
    with pytest.raises(OSError, match=message), locked(tmp_path / "model"):
        pass
    assert names(tmp_path) == [".model.lock"]


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(NotADirectoryError), replacing_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").read_text() == "mine"


def test_a_link_keeps_leading_to_the_new_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "x").write_text("")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk") == ["x"]


def test_names_with_pattern_characters_clear_only_their_own(tmp_path: Path) -> None:
    (tmp_path / ".model-a.00001111.tmp").mkdir()
    with replacing_folder(tmp_path / "model-[a]") as folder:
        (folder / "x").write_text("")
    assert names(tmp_path) == [".model-a.00001111.tmp", "model-[a]"]


def test_what_only_looks_like_a_writers_work_stays(tmp_path: Path) -> None:
    others = [".m.mine.tmp", ".m.old", ".m.tmp", ".m.v2.00001111.tmp", ".m.00001111.tmp.bak"]
    for name in others:
        (tmp_path / name).mkdir()
    with replacing_folder(tmp_path / "m") as folder:
        (tmp_path / ".m.00001111.tmp").mkdir()
        (folder / "x").write_text("")
    with replacing_folder(tmp_path / "m") as folder:
        (folder / "x").write_text("")
    assert names(tmp_path) == sorted([*others, "m"])


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_older_folder_can_be_looked_at_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    target, seen = tmp_path / "model", []

    def leaving(older: Path) -> None:
        seen.append((names(older), names(target)))

    for name in ("first", "second"):
        with replacing_folder(target, leaving=leaving) as folder:
            (folder / name).write_text("")
    assert seen == [(["first"], ["second"])]
    assert names(tmp_path) == ["model"]


def test_links_in_a_circle_hold_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop/model"):
        with pytest.raises(OSError, match=r"oop"), replacing_folder(path):
            pass
    assert names(tmp_path) == ["loop"]
