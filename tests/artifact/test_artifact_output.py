"""Files that a person names to be written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.output import Kind, Output
from mlc_rwkv_world.errors import RwkvWorldError, StorageError, UsageError

KIND = Kind("list of ours", re.compile(rb"ours: "))


def test_a_new_file_an_older_one_and_an_empty_one(tmp_path: Path) -> None:
    output = Output(tmp_path / "file", KIND)
    output.check()
    assert list(tmp_path.iterdir()) == []
    output.path.touch()
    for content in (b"ours: 1", b"ours: 2"):
        output.check()
        output.write(content)
        assert output.path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [output.path]


def test_what_is_of_another_kind_stays(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(b"not ours: ")
    for use in (Output(path, KIND).check, lambda: Output(path, KIND).write(b"ours: ")):
        with pytest.raises(UsageError, match=rf"{path} is there already, and is no list of ours"):
            use()
    assert path.read_bytes() == b"not ours: "


def test_what_comes_while_the_work_is_done_stays_too(tmp_path: Path) -> None:
    output = Output(tmp_path / "file", KIND)
    output.check()
    output.path.write_bytes(b"mine")
    with pytest.raises(UsageError):
        output.write(b"ours: ")
    assert output.path.read_bytes() == b"mine"


@pytest.mark.parametrize("target", ["there", "nowhere", "/dev/null"])
def test_links_are_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_bytes(b"ours: 1")
    path = tmp_path / "link"
    path.symlink_to(target)
    with pytest.raises(UsageError, match=r"link is no file but a link"):
        Output(path, KIND).write(b"ours: 2")
    assert path.is_symlink()
    assert (tmp_path / "there").read_bytes() == b"ours: 1"
    assert not (tmp_path / "nowhere").exists()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no file but"):
        Output(tmp_path / "pipe", KIND).check()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("no/x", "No such file or directory"),
        ("file/x", "Not a directory"),
        ("folder", "Is a directory"),
        ("folder/" + "x" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=f"cannot be written: {reason}"):
        Output(tmp_path / place, KIND).check()


def test_an_impossible_name(tmp_path: Path) -> None:
    with pytest.raises(RwkvWorldError, match="is no name of a file"):
        Output(tmp_path / "a\0b", KIND).check()
