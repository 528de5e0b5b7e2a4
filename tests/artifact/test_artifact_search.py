"""Finding an artifact by path and by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.checksums import write_checksums
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, SHA256SUMS
from mlc_rwkv_world.artifact.registry import home, register, registered
from mlc_rwkv_world.artifact.search import find, library_kind, spelled
from mlc_rwkv_world.errors import ArtifactError, NotFoundError, UsageError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with a home for the registry beside it."""
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def make(folder: Path, *targets: str) -> Path:
    """An artifact as it comes from elsewhere: with its list, but in no record."""
    (folder / "params").mkdir(parents=True)
    (folder / "params/mlc-chat-config.json").write_text("{}")
    libraries = [f"{folder.name}-{target}.so" for target in targets]
    for name in libraries:
        (folder / name).write_bytes(b"")
    write_checksums(folder, libraries, {})
    return folder


def build(folder: Path, *targets: str) -> Path:
    """The same, built by this user where it stands."""
    assert register(make(folder, *targets))
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
    for path in ("./m-MLC", folder):
        found = find(path)
        assert found.params.resolve() == folder
        # Nothing lists it, so it runs only where it is named.
        assert (found.libraries, found.kinds) == ({}, set())
        assert [library.name for library in found.unlisted] == ["lib.so"]
    assert find(folder, model_lib=folder / "lib.so").libraries_for("cpu") == (folder / "lib.so",)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("strays", [[CHAT_CONFIG], ["tensor-cache.json"], [CHAT_CONFIG, "x.bin"]])
def test_copies_of_its_parts_beside_an_artifact_are_not_its_parameters(
    place: Path, strays: list[str], listed: bool
) -> None:
    folder = make(place / "m-q0f32", "llvm")
    (folder / "params/tensor-cache.json").write_text("{}")
    if not listed:
        (folder / SHA256SUMS).unlink()
    for name in strays:
        (folder / name).write_text("{}")
    for path in (folder, folder / CHAT_CONFIG, folder / "params", folder / "params" / CHAT_CONFIG):
        if path.exists():
            found = find(path)
            assert (found.folder, found.params) == (folder, folder / "params")
            assert [library.name for library in found.libraries] == ["m-q0f32-llvm.so"] * listed
    (folder / "params" / CHAT_CONFIG).unlink()
    with pytest.raises(ArtifactError, match=r"m-q0f32/params/mlc-chat-config\.json is missing"):
        find(folder)


def test_the_list_tells_parameters_from_those_of_another_layout(place: Path) -> None:
    """A build of ours into a folder that stock mlc_llm filled: both halves are whole.

    What another built so may as well be parameters that were taken alone, and runs nothing.
    """
    folder = make(place / "m-q0f32", "llvm")
    for name in (CHAT_CONFIG, "tensor-cache.json", "params_shard_0.bin"):
        (folder / name).write_text("{}")
    assert (find(folder).params, find(folder).libraries) == (folder, {})
    assert register(folder)
    assert find(folder).params == find("m").params.resolve() == folder / "params"
    assert len(find(folder).libraries) == len(find("m").libraries) == 1
    shutil.rmtree(folder / "params")
    with pytest.raises(ArtifactError, match="m-q0f32/params is missing"):
        find(folder)
    (folder / SHA256SUMS).unlink()
    assert find(folder).params == folder


@pytest.mark.parametrize("name", [".", "./", "/", "//x", "a/../b", "..", f"{'x' * 260}.so"])
def test_a_list_names_files_in_its_folder(place: Path, name: str) -> None:
    folder = make(place / "m-q0f32", "llvm")
    (folder / SHA256SUMS).write_text(f"{'0' * 64}  {name}\n")
    assert find(folder).params == folder / "params"
    with pytest.raises(ArtifactError, match="line 1 is not the checksum of another file"):
        _ = find(folder).libraries
    shutil.rmtree(folder / "params")
    with pytest.raises(NotFoundError):
        find(folder)


@pytest.mark.parametrize("parent", ["", "dist", "dist/prebuilt", "../home"])
def test_names_with_and_without_quantization(place: Path, parent: str) -> None:
    folder = build(place / parent / "m-q4f16_1")
    assert find("m-q4f16_1").folder.resolve() == folder.resolve()
    assert find("m").folder.resolve() == folder.resolve()


def test_a_short_name_must_be_unique(place: Path) -> None:
    build(place / "dist/m-q4f16_1")
    build(place / "dist/m-q0f32")
    with pytest.raises(UsageError, match="m-q0f32, m-q4f16_1"):
        find("m")
    assert find("m-q0f32").name == "m-q0f32"


def test_nearer_places_win(place: Path) -> None:
    build(place / "dist/prebuilt/m-q0f32")
    near = build(place / "dist/m-q4f16_1")
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
    missing = re.escape(f"{folder / 'params/mlc-chat-config.json'} is missing")
    for model in ("m", folder, folder / "params"):
        with pytest.raises(ArtifactError, match=missing):
            find(model)
    shutil.rmtree(folder)
    assert registered() == []
    with pytest.raises(NotFoundError):
        find("m")


def test_the_latest_of_a_name_comes_first(place: Path, tmp_path: Path) -> None:
    old, new = make(tmp_path / "a/m-q0f32"), make(tmp_path / "b/m-q0f32")
    for folder in (old, new, old, new):
        assert register(folder)
    assert registered() == [new, old]
    assert find("m").folder == new


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"artifacts": [], "lists": {"/x": 1}}',
        '{"artifacts": 3}',
        '{"artifacts": ["x\\u0000"]}',
        '{"artifacts": ["/m-q0f32\\u0000", "/\\ud800/m-q0f32", "/%s/m-q0f32"]}' % ("long" * 64),
    ],
)
def test_a_damaged_registry_is_an_empty_one(place: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "home").mkdir()
    assert home() == tmp_path / "home"
    (tmp_path / "home/artifacts.json").write_text(content)
    assert registered() == []
    with pytest.raises(NotFoundError):
        find("m-q0f32")
    assert register(make(tmp_path / "m-q0f32"))
    assert registered() == [tmp_path / "m-q0f32"]


def test_a_pipe_in_place_of_the_record(place: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.mkfifo(tmp_path / "home/artifacts.json")
    with pytest.raises(NotFoundError):
        find("m")
    assert register(make(tmp_path / "m-q0f32"))
    assert find("m").folder == tmp_path / "m-q0f32"


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


def test_a_name_means_no_folder_that_one_stands_in(place: Path, tmp_path: Path) -> None:
    ours = build(tmp_path / "far/m-q0f32", "llvm")
    for near in ("m-q0f32", "dist/m-q0f32", "dist/prebuilt/m-q0f32", "../home/m-q0f32"):
        make(place / near, "llvm")
    assert find("m").folder == find("m-q0f32").folder == ours
    assert find("./m-q0f32").folder.resolve() == place / "m-q0f32"
    assert find(Path("m-q0f32")).folder.resolve() == place / "m-q0f32"


@pytest.mark.parametrize("quantization", ["", "-q0f32"])
def test_what_others_built_is_named_with_the_way_to_run_it(place: Path, quantization: str) -> None:
    folder = make(place / "dist/m-q0f32", "llvm")
    with pytest.raises(UsageError) as caught:
        find(f"m{quantization}")
    assert f"{folder} was not built here by you" in str(caught.value)
    command = str(caught.value).rpartition("--model ")[2]
    assert command == "dist/m-q0f32"
    assert find(command).folder.resolve() == folder


def test_what_was_changed_since_it_was_built_is_no_longer_found_by_name(
    place: Path, tmp_path: Path
) -> None:
    folder = build(tmp_path / "far/m-q0f32", "llvm")
    evil = folder / "evil.so"
    evil.write_bytes(b"")
    assert [path.name for path in find("m").libraries] == ["m-q0f32-llvm.so"]
    write_checksums(folder, ["m-q0f32-llvm.so", "evil.so"], {})
    with pytest.raises(UsageError, match=rf"{folder} was changed since you built it"):
        find("m")
    (folder / SHA256SUMS).unlink()
    with pytest.raises(UsageError, match=rf"{folder} lost its SHA256SUMS"):
        find("m")
    assert find(folder).libraries == {}


def test_a_record_without_lists_names_nothing(place: Path, tmp_path: Path) -> None:
    """As older versions wrote it: nothing says what stood there."""
    folder = build(tmp_path / "far/m-q0f32", "llvm")
    path = tmp_path / "home/artifacts.json"
    old = {key: value for key, value in json.loads(path.read_text()).items() if key != "lists"}
    path.write_text(json.dumps(old))
    assert registered() == [folder]
    (place / "m-q0f32").symlink_to(folder)
    with pytest.raises(UsageError) as caught:
        find("m")
    assert str(caught.value).count("was recorded by an older version: build it again") == 1
    (place / "m-q0f32").unlink()
    assert register(folder)
    assert find("m").folder == folder


def test_what_stands_there_is_known_whenever_its_build_is_killed(
    place: Path, tmp_path: Path
) -> None:
    """A build records what it wrote just before it moves it: either may then stand there."""
    folder, next_one = build(tmp_path / "m-q0f32", "llvm"), make(tmp_path / "work", "cuda")
    assert register(folder, next_one)
    assert find("m").folder == folder
    shutil.rmtree(folder)
    next_one.rename(folder)
    assert find("m").folder == folder


def test_a_build_without_a_library_hides_none_that_works(place: Path, tmp_path: Path) -> None:
    build(place / "dist/m-q0f32")
    works = build(tmp_path / "far/m-q0f32", "llvm")
    assert find("m").folder == find("m-q0f32").folder == works
    library = tmp_path / "other.so"
    library.write_bytes(b"")
    assert find("m", model_lib=library).folder.resolve() == place / "dist/m-q0f32"


def test_one_that_lost_a_part_hides_none_that_is_whole(place: Path, tmp_path: Path) -> None:
    broken = build(place / "dist/m-q0f32", "llvm")
    shutil.rmtree(broken / "params")
    missing = re.escape("dist/m-q0f32/params is missing")
    with pytest.raises(ArtifactError, match=missing):
        find("m")
    with pytest.raises(ArtifactError, match=missing):
        find("dist/m-q0f32")
    whole = build(tmp_path / "far/m-q0f32", "llvm")
    assert find("m").folder == whole


@pytest.mark.parametrize("part", ["tensor-cache.json", "ndarray-cache.json", "params_shard_0.bin"])
def test_a_part_tells_of_an_artifact_without_its_configuration(place: Path, part: str) -> None:
    (place / "m/params").mkdir(parents=True)
    (place / "m/params" / part).write_bytes(b"")
    for path in ("./m", "m/params"):
        with pytest.raises(ArtifactError, match=r"m/params/mlc-chat-config\.json is missing"):
            find(path)


def test_a_pipe_in_place_of_the_configuration(place: Path) -> None:
    folder = make(place / "m-q0f32")
    (folder / "params/mlc-chat-config.json").unlink()
    os.mkfifo(folder / "params/mlc-chat-config.json")
    with pytest.raises(ArtifactError, match="is not a regular file"):
        find(folder)


def test_links_in_a_circle_are_no_artifacts(place: Path) -> None:
    (place / "m-q0f32").symlink_to("m-q0f32")
    with pytest.raises(NotFoundError):
        find("m")
    for path in ("./m-q0f32", "m-q0f32/..", "m-q0f32/params", "m-q0f32/params/.."):
        with pytest.raises(NotFoundError):
            find(path)


def test_other_folders_are_no_artifacts(place: Path) -> None:
    (place / "checkpoint").mkdir()
    (place / "checkpoint/config.json").write_text("{}")
    (place / "checkpoint/SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(NotFoundError, match=r"checkpoint: it holds no params/mlc-chat-config"):
        find("./checkpoint")
    with pytest.raises(NotFoundError, match="no such folder"):
        find("./nowhere")
    with pytest.raises(NotFoundError, match="No artifact named 'checkpoint'"):
        find("checkpoint")


def test_parameters_alone_have_no_library(place: Path) -> None:
    """Whatever lies in the folder that was taken: a list, and an artifact inside."""
    folder = make(place / "m/params", "llvm")
    (folder / "mlc-chat-config.json").write_text("{}")
    for path in (folder, "m/params", "./m"):
        found = find(path)
        assert (found.params.resolve(), found.libraries) == (folder, {})
        assert [library.name for library in found.unlisted] == ["params-llvm.so"]
    (folder / "mlc-chat-config.json").unlink()
    with pytest.raises(NotFoundError):
        find(folder)


def test_a_library_among_the_parameters_is_listed_by_nobody(place: Path) -> None:
    folder = make(place / "m-q0f32", "llvm")
    (folder / "params/a.so").write_bytes(b"")
    write_checksums(folder, ["m-q0f32-llvm.so"], {})
    assert "a.so" not in (folder / SHA256SUMS).read_text()
    with (folder / SHA256SUMS).open("a") as file:
        file.write(f"{'0' * 64}  params/a.so\n")
    found = find(folder)
    assert [path.name for path in found.libraries] == ["m-q0f32-llvm.so"]
    assert [path.name for path in found.unlisted] == ["a.so"]


@pytest.mark.parametrize("words", [".", "..", "params", "mlc-chat-config.json"])
def test_words_for_places_are_paths(
    place: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(place / "m-q0f32", "llvm")
    monkeypatch.chdir(folder if words in (".", "params") else folder / "params")
    found = find(words)
    assert found.name == "m-q0f32"
    assert len(found.libraries) == 1


def test_what_is_told_to_run_an_artifact_finds_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = build(tmp_path / "far/m-q0f32", "llvm")
    assert spelled(far) == "m-q0f32"
    build(place / "dist/m-q0f32", "llvm")
    # The name means the nearer one now.
    assert spelled(far) == str(far)
    assert spelled(Path("dist/m-q0f32")) == "m-q0f32"
    make(place / "n's-q0f32", "llvm")
    assert spelled(Path("n's-q0f32")) == """'./n'"'"'s-q0f32'"""
    assert spelled(build(place / "-x/-m-q0f32")) == str(place / "-x/-m-q0f32")
    assert spelled(Path("-x/-m-q0f32")) == "./-x/-m-q0f32"
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(far / "m-q0f32-llvm.so"))
    assert not register(Path("dist/m-q0f32"))
    assert spelled(Path("dist/m-q0f32")) == "dist/m-q0f32"


def test_without_a_home_there_is_no_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", "~no-such-user/home")
    folder = make(place / "m-q0f32", "llvm")
    assert home() is None
    assert registered() == []
    assert not register(folder)
    assert spelled(Path("m-q0f32")) == "./m-q0f32"
    with pytest.raises(NotFoundError):
        find("nothing")


def test_the_record_is_not_that_of_the_folder_one_stands_in(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLC_RWKV_WORLD_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".local/share/mlc-rwkv-world"
    monkeypatch.setenv("HOME", "here")
    assert home() is None
