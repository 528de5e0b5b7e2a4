"""Finding an artifact by path and by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.registry import home, register, registered
from mlc_rwkv_world.artifact.search import find, library_kind
from mlc_rwkv_world.errors import NotFoundError, UsageError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with a home for the registry beside it."""
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def make(folder: Path, *targets: str) -> Path:
    (folder / "params").mkdir(parents=True)
    (folder / "params/mlc-chat-config.json").write_text("{}")
    for target in targets:
        (folder / f"{folder.name}-{target}.so").write_bytes(b"")
    return folder


def test_paths_of_all_kinds_lead_to_one_artifact(place: Path) -> None:
    folder = make(place / "dist/m-q0f32", "llvm")
    paths: list[str | Path] = [
        folder,
        folder / "params",
        folder / "params/mlc-chat-config.json",
        "dist/m-q0f32",
    ]
    for path in paths:
        found = find(path)
        assert found.folder.resolve() == folder
        assert found.params.resolve() == folder / "params"
        assert [library.name for library in found.libraries] == ["m-q0f32-llvm.so"]
        assert found.name == "m-q0f32"


def test_stock_layout_with_everything_in_one_folder(place: Path) -> None:
    folder = place / "m-MLC"
    folder.mkdir()
    (folder / "mlc-chat-config.json").write_text("{}")
    (folder / "lib.so").write_bytes(b"")
    assert find("m-MLC").params.resolve() == folder
    assert [library.name for library in find(folder).libraries] == ["lib.so"]


@pytest.mark.parametrize("parent", ["", "dist", "dist/prebuilt", "../home"])
def test_names_with_and_without_quantization(place: Path, parent: str) -> None:
    folder = make(place / parent / "m-q4f16_1")
    assert find("m-q4f16_1").folder.resolve() == folder.resolve()
    assert find("m").folder.resolve() == folder.resolve()


def test_a_short_name_must_be_unique(place: Path) -> None:
    make(place / "dist/m-q4f16_1")
    make(place / "dist/m-q0f32")
    with pytest.raises(UsageError, match="m-q0f32, m-q4f16_1"):
        find("m")
    assert find("m-q0f32").name == "m-q0f32"


def test_nearer_places_win(place: Path) -> None:
    make(place / "dist/prebuilt/m-q0f32")
    near = make(place / "dist/m-q4f16_1")
    assert find("m").folder.resolve() == near


def test_a_miss_says_where_it_looked(place: Path) -> None:
    (place / "dist/checkpoint").mkdir(parents=True)
    with pytest.raises(NotFoundError) as caught:
        find("checkpoint")
    message = str(caught.value)
    for path in ["dist/checkpoint", "dist/prebuilt/checkpoint"]:
        assert str(place / path) in message
    assert str(place.parent / "home/artifacts.json") in message


def test_half_written_artifacts_are_not_found(place: Path) -> None:
    make(place / "dist/.m-q0f32.1234.tmp")
    with pytest.raises(NotFoundError):
        find("m")


def test_found_from_another_folder_once_registered(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "far/m-q0f32", "llvm")
    assert register(folder)
    assert find("m").folder == folder
    assert find("m-q0f32").folder == folder
    (folder / "params/mlc-chat-config.json").unlink()
    assert registered() == []
    with pytest.raises(NotFoundError):
        find("m")


def test_the_latest_of_a_name_comes_first(place: Path, tmp_path: Path) -> None:
    old, new = make(tmp_path / "a/m-q0f32"), make(tmp_path / "b/m-q0f32")
    for folder in (old, new, old, new):
        assert register(folder)
    assert registered() == [new, old]
    assert find("m").folder == new


@pytest.mark.parametrize("content", ["", "[]", '{"artifacts": 3}', '{"artifacts": ["x\\u0000"]}'])
def test_a_damaged_registry_is_an_empty_one(place: Path, tmp_path: Path, content: str) -> None:
    home().mkdir()
    (home() / "artifacts.json").write_text(content)
    assert registered() == []
    assert register(make(tmp_path / "m-q0f32"))
    assert registered() == [tmp_path / "m-q0f32"]


def test_registry_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLC_RWKV_WORLD_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert register(make(tmp_path / "m-q0f32"))
    content = json.loads((tmp_path / "mlc-rwkv-world/artifacts.json").read_text())
    assert content["artifacts"] == [str(tmp_path / "m-q0f32")]
    assert [path.name for path in (tmp_path / "mlc-rwkv-world").iterdir()] == ["artifacts.json"]


def test_a_home_that_cannot_be_written_is_no_failure(place: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    assert not register(make(tmp_path / "m-q0f32"))


def test_libraries_are_told_apart_by_device(place: Path) -> None:
    folder = make(place / "cuda-talk-q4f16_1", "cuda", "x86_64-znver3", "x86_64-haswell")
    newest = folder / "cuda-talk-q4f16_1-x86_64-znver3.so"
    os.utime(newest, (2e9, 2e9))
    found = find(folder)
    assert [library_kind(path) for path in found.libraries] == ["cuda", "cpu", "cpu"]
    assert found.libraries_for("cpu")[0] == newest
    assert len(found.libraries_for("cuda")) == 1
    assert found.libraries_for("metal") == ()


def test_a_library_of_the_callers_choice(place: Path, tmp_path: Path) -> None:
    folder = make(place / "m-q0f32", "llvm")
    other = tmp_path / "other.so"
    with pytest.raises(NotFoundError, match=r"other\.so does not exist"):
        find(folder, model_lib=other)
    other.write_bytes(b"")
    found = find(folder, model_lib=other)
    assert found.libraries_for("cpu") == found.libraries_for("cuda") == (other,)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_impossible_names(place: Path, name: str) -> None:
    with pytest.raises(UsageError):
        find(name)
