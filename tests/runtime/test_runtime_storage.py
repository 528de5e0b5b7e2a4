"""States on disks that are full, and output that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import fill, make_read_only, small_disk

from mlc_rwkv_world import errors
from mlc_rwkv_world.chat import Chat
from mlc_rwkv_world.errors import RwkvWorldError, StorageError
from mlc_rwkv_world.runtime import Engine


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1) as place:
        yield place


def test_a_state_that_cannot_be_saved_leaves_the_older_one(engine: Engine, disk: Path) -> None:
    chat = Chat(engine, seed=1, max_tokens=4)
    list(chat.ask("What is the capital of France?"))
    path = disk / "talk"
    chat.save(path)
    before = path.read_bytes()
    list(chat.ask("And of Japan?"))
    for left in (0, 4096, len(before) // 2):
        fill(disk, left)
        with pytest.raises(StorageError, match="the disk is full"):
            chat.save(path)
        assert path.read_bytes() == before
        assert {entry.name for entry in disk.iterdir()} == {"filler", "talk"}
    (disk / "filler").unlink()
    make_read_only(disk)
    with pytest.raises(StorageError, match="Read-only file system"):
        chat.save(path)
    again = Chat(engine)
    again.load(path)
    assert again.turns == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written() -> None:
    command = [sys.executable, "-m", "mlc_rwkv_world", "chat", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == StorageError.exit_status
    assert done.stderr.endswith(
        "error: standard output cannot be written: No space left on device. "
        "Send it to another place.\n"
    )
    assert done.stderr.count("\n") == 1


def test_every_kind_of_error_has_a_status_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, RwkvWorldError)
    ]
    assert len(kinds) > 10
    assert len({kind.exit_status for kind in kinds}) == len(kinds)
    # 126 and above belong to the shell.
    assert all(0 < kind.exit_status < 64 for kind in kinds)


def test_messages_cannot_steer_a_terminal() -> None:
    error = RwkvWorldError("a\x1b[2J\x07\u202e\udcff\x7f é 日\nb", lines=["c\nd"])
    assert str(error) == "a\\x1b[2J\\x07\\u202e\\udcff\\x7f é 日\\nb\nc\\nd"
