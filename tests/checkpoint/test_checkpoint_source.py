"""What --hf-path and --model may say, and where they lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import Tensors, write_hf_bin, write_pth
from support.hub_server import HubServer

from mlc_rwkv_world.checkpoint import find_model, resolve_source
from mlc_rwkv_world.errors import NotFoundError, UsageError


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "w.pth").touch()
    for source, path in {
        "a": Path("a"),
        "a/b": Path("a/b"),
        "./a/b": Path("a/b"),
        str(tmp_path / "a"): tmp_path / "a",
        "w.pth": Path("w.pth"),
        "~/w.pth": tmp_path / "w.pth",
    }.items():
        assert resolve_source(source, models) == path
    assert not models.exists()


@pytest.mark.parametrize("source", ["nowhere", "nowhere.pth", "./a/b", "/a/b", "../a", "~/a/b"])
def test_paths_that_are_not_there(tmp_path: Path, source: str) -> None:
    with pytest.raises(NotFoundError, match=r"there is no such file or folder.*owner/name"):
        resolve_source(source, tmp_path)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError, match="is empty; give a folder"):
        resolve_source(source, tmp_path)


def test_hub_ids_and_addresses(
    tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pth(tmp_path / "blink" / "W-0.1B.pth", world)
    write_pth(tmp_path / "blink" / "W-0.4B.pth", world)
    repos = {"BlinkDL/w": tmp_path / "blink", "a/b": write_hf_bin(tmp_path / "hf", world)}
    with HubServer(repos) as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        for number, (source, folder) in enumerate(
            {
                "a/b": "b",
                "hf://a/b": "b",
                "HF://a/b": "b",
                "https://huggingface.co/a/b": "b",
                "https://huggingface.co/a/b/": "b",
                "BlinkDL/w/W-0.4B.pth": "W-0.4B",
                "https://huggingface.co/BlinkDL/w/blob/main/W-0.4B.pth": "W-0.4B",
                "https://huggingface.co/BlinkDL/w/resolve/main/W-0.1B.pth": "W-0.1B",
            }.items()
        ):
            models = tmp_path / str(number)
            assert resolve_source(source, models) == models / folder
        with pytest.raises(UsageError):
            resolve_source("hf://b", tmp_path)


def test_find_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = Path("dist/models")
    with pytest.raises(NotFoundError, match=r"holds no models"):
        find_model("tiny", models)
    (models / "tiny").mkdir(parents=True)
    (models / "one.pth").touch()
    (models / ".half.partial").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert find_model("tiny", models) == models / "tiny"
    assert find_model("one", models) == models / "one.pth"
    assert find_model("one.pth", models) == models / "one.pth"
    assert find_model("elsewhere", models) == Path("elsewhere")
    with pytest.raises(NotFoundError) as raised:
        find_model("half", models)
    message = str(raised.value)
    assert "looked at dist/models/half, dist/models/half.pth, half." in message
    assert "dist/models holds 'one.pth', 'tiny'." in message
    for name in ("", "."):
        with pytest.raises(NotFoundError):
            find_model(name, models)
