"""Models in the hub's own cache are used from there, with a network and without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing import assert_holds
from support.checkpoints import Tensors, write_hf_safetensors, write_pth
from support.hub_server import HubServer

from mlc_rwkv_world.checkpoint import fetch, open_checkpoint
from mlc_rwkv_world.errors import CheckpointError, DownloadError

REPO = "someone/rwkv-4-world-tiny"
BLINK = "blink/many"


@pytest.fixture
def hub(tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    sharded = write_hf_safetensors(tmp_path / "served" / "tiny", world, shards=2)
    for name in ("A 1%.pth", "old/B.pth"):
        write_pth(tmp_path / "served" / "many" / name, world)
    with HubServer({REPO: sharded, BLINK: tmp_path / "served" / "many"}) as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


def hub_download(
    hub: HubServer, cache: Path, repo: str, *names: str, revision: str = "main"
) -> Path:
    """Files as the hub's own tools put them into their cache, which is given back.

    They are links from a snapshot to blobs. `test_the_cache_is_as_the_hubs_own_tools_make_it`
    holds this to the real ones.
    """
    place = cache / f"models--{repo.replace('/', '--')}"
    commit, folder = hub.folder(repo, revision) or (pytest.fail(revision), Path())
    ref = place / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    for name in names or hub.names(folder):
        file = hub.file(folder, name)
        assert file is not None
        blob = place / "blobs" / file.etag
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file.path, blob)
        link = place / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return place


@pytest.mark.parametrize("offline", [False, True])
def test_used_by_name_without_a_request(
    hub: HubServer,
    tmp_path: Path,
    world: Tensors,
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    models = tmp_path / "models"
    got = fetch(REPO, models)
    assert got == place / "snapshots" / hub.revision(REPO)
    assert hub.requests == []
    assert not models.exists()
    checkpoint = open_checkpoint(got)
    assert checkpoint.name == "rwkv-4-world-tiny"
    assert_holds(checkpoint, world)
    assert fetch(f"{hub.endpoint}/{REPO}/tree/main", models) == got
    assert fetch(f"{REPO}@{hub.revision(REPO)}", models) == got


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"])
def test_wherever_the_variables_put_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/$PART")
    monkeypatch.setenv("PART", "a b")
    below = "huggingface/hub" if variable == "XDG_CACHE_HOME" else ""
    hub_download(hub, tmp_path / "a b" / below, REPO)
    assert fetch(REPO, tmp_path / "models").parent.name == "snapshots"
    assert hub.requests == []


def test_one_file_of_several(
    hub: HubServer, tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", BLINK, "old/B.pth")
    monkeypatch.setenv("HF_HUB_OFFLINE", "YES")
    got = fetch(f"{BLINK}/old/B.pth", tmp_path)
    assert got == place / "snapshots" / hub.revision(BLINK) / "old" / "B.pth"
    checkpoint = open_checkpoint(got)
    assert checkpoint.name == "B"
    assert_holds(checkpoint, world)
    with pytest.raises(DownloadError, match=r"is not in .* nor, whole, in .*HF_HUB_OFFLINE forb"):
        fetch(f"{BLINK}/A 1%.pth", tmp_path)


def test_another_revision_has_another_name(hub: HubServer, tmp_path: Path, world: Tensors) -> None:
    cache = tmp_path / "home" / "hub"
    hub.revisions = {REPO: {"v1": hub.repos[REPO]}}
    place = hub_download(hub, cache, REPO, revision="v1")
    assert fetch(REPO, tmp_path / "models") == tmp_path / "models" / "rwkv-4-world-tiny"
    got = fetch(f"{REPO}@v1", tmp_path / "models")
    assert got == place / "snapshots" / hub.revision(REPO, "v1")
    assert open_checkpoint(got).name == f"rwkv-4-world-tiny@{hub.revision(REPO, 'v1')[:12]}"


def test_half_a_model_is_downloaded(hub: HubServer, tmp_path: Path, world: Tensors) -> None:
    cache = tmp_path / "home" / "hub"
    hub_download(hub, cache, REPO, "config.json", "model.safetensors.index.json")
    got = fetch(REPO, tmp_path / "models")
    assert got == tmp_path / "models" / "rwkv-4-world-tiny"
    assert_holds(open_checkpoint(got), world)


def test_links_to_blobs_that_were_removed(hub: HubServer, tmp_path: Path) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", REPO)
    shutil.rmtree(place / "blobs")
    assert fetch(REPO, tmp_path / "models").parent == tmp_path / "models"


@pytest.mark.parametrize(
    "ref", ["", "main", "../../..", "0" * 39, "g" * 40, "0" * 40, "\0", "é" * 40, "1" * 1_000_000]
)
def test_refs_that_lead_nowhere(hub: HubServer, tmp_path: Path, ref: str) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", REPO)
    (place / "refs" / "main").write_text(ref)
    assert fetch(REPO, tmp_path / "models").parent == tmp_path / "models"


def test_links_out_of_the_cache(hub: HubServer, tmp_path: Path, world: Tensors) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", BLINK, "A 1%.pth")
    link = place / "snapshots" / hub.revision(BLINK) / "A 1%.pth"
    link.unlink()
    link.symlink_to(write_pth(tmp_path / "outside.pth", world))
    assert fetch(f"{BLINK}/A 1%.pth", tmp_path / "models") == tmp_path / "models" / "A 1%"


def test_a_cache_that_may_not_be_written(hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "hub"
    hub_download(hub, cache, REPO)
    before = sorted(cache.rglob("*"))
    open_checkpoint(fetch(REPO, tmp_path / "models"))
    assert sorted(cache.rglob("*")) == before


def test_a_damaged_file_says_what_to_remove(hub: HubServer, tmp_path: Path) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", REPO)
    got = fetch(REPO, tmp_path / "models")
    shard = next(got.glob("model-00001-*")).resolve()
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(CheckpointError, match=f"It is in the hub's cache: remove '{place}' there"):
        open_checkpoint(got)
    shutil.rmtree(place)
    open_checkpoint(fetch(REPO, tmp_path / "models"))


def test_the_cache_is_as_the_hubs_own_tools_make_it(
    hub: HubServer, tmp_path: Path, world: Tensors
) -> None:
    from huggingface_hub import hf_hub_download

    cache = tmp_path / "real"
    for name in ("config.json", *hub.names(hub.repos[REPO])):
        hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.endpoint)
    ours = hub_download(hub, tmp_path / "ours", REPO)
    real = cache / ours.name

    def links(place: Path) -> dict[str, str]:
        paths = [*place.rglob("snapshots/*/*"), *place.rglob("refs/*")]
        return {
            str(path.relative_to(place)): str(path.readlink())
            if path.is_symlink()
            else path.read_text()
            for path in paths
        }

    assert links(real) == links(ours)


def test_a_pipe_in_place_of_a_ref(hub: HubServer, tmp_path: Path) -> None:
    place = hub_download(hub, tmp_path / "home" / "hub", REPO)
    (place / "refs" / "main").unlink()
    os.mkfifo(place / "refs" / "main")
    assert fetch(REPO, tmp_path / "models").parent == tmp_path / "models"
