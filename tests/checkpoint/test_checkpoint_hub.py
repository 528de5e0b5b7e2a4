"""Downloads from a local server that speaks the hub's API: whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from comparing import assert_holds
from support.checkpoints import (
    Tensors,
    random_world,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)
from support.disks import small_disk as small_disk_at
from support.hub_server import HubServer

from mlc_rwkv_world.checkpoint import fetch, open_checkpoint
from mlc_rwkv_world.errors import CheckpointError, DownloadError, StorageError, UsageError

REPO = "StarRing2022/RWKV-4-World-tiny"
BLINK = "BlinkDL/rwkv-4-world"

_FETCH = """
import sys
import termios
from pathlib import Path
from mlc_rwkv_world.checkpoint import fetch
from mlc_rwkv_world.errors import RwkvWorldError
try:
    print(fetch(sys.argv[1], Path(sys.argv[2])))
except RwkvWorldError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def large() -> Tensors:
    """16 MB in two tensors of 8 MB, so that a download of it can be interrupted."""
    return random_world(num_hidden_layers=1, hidden_size=32)


@pytest.fixture
def hub(tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, with a repository that holds more than a model."""
    folder = write_hf_bin(tmp_path / "served" / "tiny", world)
    for name in ("README.md", "modeling_rwkv.py", "optimizer.bin", "generation_config.json"):
        (folder / name).write_text(f"{{}} {name}")
    with HubServer({REPO: folder}) as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "dist" / "models"


def fetching(
    server: HubServer,
    models: Path,
    source: str = REPO,
    stderr: int = subprocess.PIPE,
    **variables: str,
) -> Any:
    """A process that fetches."""
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH, source, str(models)],
        env=os.environ | server.environment(models.parent / "home") | variables,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_is_needed(hub: HubServer, models: Path, world: Tensors) -> None:
    folder = fetch(REPO, models)
    assert folder == models / "RWKV-4-World-tiny"
    assert visible(folder) == ["config.json", "generation_config.json", "pytorch_model.bin"]
    assert everything(models) == ["RWKV-4-World-tiny"]
    for name in visible(folder):
        assert (folder / name).read_bytes() == (hub.repos[REPO] / name).read_bytes()
    assert_holds(open_checkpoint(folder), world)


def test_address_with_a_slash_at_its_end(
    hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    fetch(REPO, models)
    assert not any("//" in request.path for request in hub.requests)


def test_what_is_present_is_not_asked_for_again(hub: HubServer, models: Path) -> None:
    first = fetch(REPO, models)
    asked = len(hub.requests)
    assert fetch(REPO, models) == first
    assert len(hub.requests) == asked
    hub.faults.status = 503
    assert fetch(REPO, models) == first


def test_present_model_needs_no_network(hub: HubServer, models: Path) -> None:
    fetch(REPO, models)
    process = fetching(hub, models, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.strip() == str(models / "RWKV-4-World-tiny")


@pytest.mark.parametrize("redirect", [False, True])
def test_progress_is_shown(hub: HubServer, models: Path, redirect: bool) -> None:
    hub.redirect = redirect
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = fetching(hub, models, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # a terminal without a writer cannot be read
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    process.communicate()
    assert process.returncode == 0, shown
    assert b"pytorch_model.bin: 100%" in shown


@pytest.mark.parametrize("write", [write_hf_bin, write_hf_safetensors])
def test_shards(hub: HubServer, models: Path, world: Tensors, tmp_path: Path, write: Any) -> None:
    hub.repos["a/sharded"] = write(tmp_path / "sharded", world, "float16", shards=3)
    folder = fetch("a/sharded", models)
    assert len(visible(folder)) == 5
    assert len(open_checkpoint(folder).files) == 3


def test_one_format_by_preference(
    hub: HubServer, models: Path, world: Tensors, tmp_path: Path
) -> None:
    write_hf_safetensors(tmp_path / "both", world, "float16")
    write_hf_bin(tmp_path / "both", world, "float16", shards=2)
    hub.repos["a/both"] = tmp_path / "both"
    assert visible(fetch("a/both", models)) == ["config.json", "model.safetensors"]
    bins = fetch("a/both", models / "bins", prefer_safetensors=False)
    assert not any(name.endswith(".safetensors") for name in visible(bins))
    assert len(open_checkpoint(bins, prefer_safetensors=False).files) == 2
    # The repository above has .bin alone, whatever is preferred.
    assert "pytorch_model.bin" in visible(fetch(REPO, models, prefer_safetensors=True))


def test_vocabulary_comes_along(hub: HubServer, models: Path) -> None:
    for name in ("tokenizer_model", "rwkv_vocab_v20230424.txt"):
        (hub.repos[REPO] / name).write_text("1 'a' 1\n")
    assert {"tokenizer_model", "rwkv_vocab_v20230424.txt"} <= set(visible(fetch(REPO, models)))


def test_pth_repositories(hub: HubServer, models: Path, world: Tensors, tmp_path: Path) -> None:
    name = "RWKV-4-World-0.1B-v1-20230520-ctx4096"
    write_pth(tmp_path / "blink" / f"{name}.pth", world, "bfloat16")
    (tmp_path / "blink" / "README.md").write_text("hello")
    hub.repos[BLINK] = tmp_path / "blink"
    one = fetch(BLINK, models)
    assert visible(one) == [f"{name}.pth"]
    open_checkpoint(one)

    write_pth(tmp_path / "blink" / "old" / "RWKV-4-World-1.5B.pth", world, "float16")
    with pytest.raises(DownloadError) as raised:
        fetch(BLINK, models / "again")
    assert f"'{name}.pth', 'old/RWKV-4-World-1.5B.pth'" in str(raised.value)
    assert f"Pick one, as in '{BLINK}/{name}.pth'" in str(raised.value)

    picked = fetch(f"{BLINK}/old/RWKV-4-World-1.5B.pth", models)
    assert picked == models / "RWKV-4-World-1.5B"
    assert visible(picked) == ["RWKV-4-World-1.5B.pth"]
    assert open_checkpoint(picked).dtype("head.weight") == "float16"
    with pytest.raises(DownloadError, match=r"has no file 'nope\.pth'; it has 'RWKV"):
        fetch(f"{BLINK}/nope.pth", models)
    assert visible(models) == ["RWKV-4-World-1.5B", "again", "rwkv-4-world"]


# Interrupted


def wait_for(condition: Any, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_download_goes_on_with_what_it_lacks(
    hub: HubServer, models: Path, large: Tensors, tmp_path: Path
) -> None:
    folder = write_hf_bin(tmp_path / "large", large)
    hub.repos["a/large"] = folder
    total = (folder / "pytorch_model.bin").stat().st_size
    assert total > 16e6
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()

    hub.faults.bytes_per_second = 8e6
    process = fetching(hub, models, "a/large")
    wait_for(lambda: hub.sent(digest) > 13e6)
    process.kill()
    process.communicate()
    hub.faults.bytes_per_second = None
    assert visible(models) == []
    (partial,) = models.glob(".*.partial")
    assert not (partial / "pytorch_model.bin").exists()
    left = list(partial.rglob("*.incomplete"))
    assert left

    before = len(hub.requests)
    process = fetching(hub, models, "a/large")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    gets = [r for r in hub.requests[before:] if r.method == "GET" and digest in r.path]
    # Whether the file that was on its way goes on or begins again is the library's affair.
    assert len(gets) == 1
    # The configuration had arrived whole the first time.
    assert not [r for r in hub.requests[before:] if r.method == "GET" and "config" in r.path]
    assert everything(models) == ["large"]
    assert everything(models / "large") == [".hub.json", "config.json", "pytorch_model.bin"]
    assert_holds(open_checkpoint(models / "large"), large)


def test_what_killed_downloads_left_does_not_pile_up(
    hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer library goes on with none of it."""
    place = models / ".RWKV-4-World-tiny.partial" / ".cache" / "huggingface" / "download"
    place.mkdir(parents=True)
    (place / "pytorch_model.bin.0123abcd.incomplete").write_bytes(b"x" * 1000)
    hub.faults.corrupt = True
    with pytest.raises(DownloadError, match="do not match the hub's checksum"):
        fetch(REPO, models)
    assert not list(models.rglob("*.incomplete"))


@pytest.mark.slow
def test_lost_connections_are_taken_up_again(
    hub: HubServer, models: Path, large: Tensors, tmp_path: Path
) -> None:
    hub.repos["a/large"] = write_hf_safetensors(tmp_path / "large", large)
    hub.faults.drop_after, hub.faults.drops = 11_000_000, 1
    folder = fetch("a/large", models)
    assert_holds(open_checkpoint(folder), large)
    ranges = [r.range for r in hub.requests if r.method == "GET" and r.sent > 1e6]
    assert len(ranges) == 2
    assert ranges[1] is not None


def test_what_an_earlier_attempt_left_is_no_part_of_it(
    hub: HubServer, models: Path, world: Tensors
) -> None:
    partial = models / ".RWKV-4-World-tiny.partial"
    partial.mkdir(parents=True)
    (partial / "pytorch_model.bin").write_bytes(b"older")
    (partial / "model.safetensors").write_bytes(b"of a repository that had another layout")
    folder = fetch(REPO, models)
    assert visible(folder) == ["config.json", "generation_config.json", "pytorch_model.bin"]
    assert_holds(open_checkpoint(folder), world)


@pytest.mark.slow
def test_two_downloads_at_once(
    hub: HubServer, models: Path, large: Tensors, tmp_path: Path
) -> None:
    hub.repos["a/large"] = write_hf_bin(tmp_path / "large", large)
    hub.faults.bytes_per_second = 8e6
    processes = [fetching(hub, models, "a/large") for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert sum("Waiting for another download" in errors for _, errors in results) == 1
    assert hub.sent() < 1.2 * (hub.repos["a/large"] / "pytorch_model.bin").stat().st_size
    assert everything(models) == ["large"]
    assert_holds(open_checkpoint(models / "large"), large)


# Refused


@pytest.mark.parametrize(
    "source",
    (
        *("", "x", "a/../b", "../b", "a/b/../../c.pth", "/a/b", "a//b", "a/b/run.py", "a/.b"),
        *(".a/b", "a/b/.pth", "a/b/", "a/b\0", "a/b\n", "a b/c", "a/b?x=1", "http://a/b"),
    ),
)
def test_malformed_ids(models: Path, source: str) -> None:
    with pytest.raises(UsageError, match=r"is not a model on the hub; expected owner/name"):
        fetch(source, models)
    assert not models.exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            {"status": 500},
            "answered 500 for StarRing2022/RWKV-4-World-tiny. The files that",
        ),
        ({"status": 403}, r"refused StarRing2022/RWKV-4-World-tiny \(403\).*HF_TOKEN"),
        ({"private": True}, "is private.*HF_TOKEN"),
        ({"gated": True}, "is gated: accept its terms at http://127.0.0.1:.*HF_TOKEN"),
        ({"corrupt": True}, "do not match the hub's checksum"),
    ],
)
def test_faults_of_the_hub(
    hub: HubServer, models: Path, fault: dict[str, Any], message: str
) -> None:
    for name, value in fault.items():
        setattr(hub.faults, name, value)
    with pytest.raises(DownloadError, match=message):
        fetch(REPO, models)
    assert not models.exists() or visible(models) == []
    for name in fault:
        setattr(hub.faults, name, None)
    fetch(REPO, models)


def test_repository_that_is_not_there(hub: HubServer, models: Path) -> None:
    with pytest.raises(DownloadError, match=r"a/b is not at http://127.*check the name"):
        fetch("a/b", models)
    assert not models.exists() or everything(models) == []


def test_no_network(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(
        DownloadError, match=r"could not be fetched from http://127.0.0.1:9 .*Check"
    ):
        fetch(REPO, models)


def test_offline_by_variable(hub: HubServer, models: Path) -> None:
    process = fetching(hub, models, HF_HUB_OFFLINE="1")
    _, errors = process.communicate()
    assert "DownloadError: " in errors
    assert "HF_HUB_OFFLINE forbids" in errors


def test_server_that_is_no_hub(models: Path, tmp_path: Path, hub: HubServer) -> None:
    hub.repos = {REPO: hub.repos[REPO]}
    hub.faults.status = 200
    with pytest.raises(DownloadError, match=r"could not be fetched"):
        fetch(REPO, models)


def test_repositories_without_weights(hub: HubServer, models: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    hub.repos["a/data"] = tmp_path / "data"
    with pytest.raises(DownloadError, match=r"holds no weights.*it has no files"):
        fetch("a/data", models)
    (tmp_path / "data" / "train.jsonl").touch()
    with pytest.raises(DownloadError, match=r"holds no weights.*it has 'train\.jsonl'"):
        fetch("a/data", models)
    assert not models.exists() or everything(models) == []


def test_repository_that_lacks_shards(
    hub: HubServer, models: Path, world: Tensors, tmp_path: Path
) -> None:
    folder = write_hf_bin(tmp_path / "m", world, shards=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    hub.repos["a/m"] = folder
    with pytest.raises(DownloadError, match=r"lacks 'pytorch_model-00002-of-00003.bin'"):
        fetch("a/m", models)
    assert visible(models) == []


def test_names_that_lead_outside(hub: HubServer, models: Path, tmp_path: Path) -> None:
    hub.repos["a/m"] = tmp_path / "empty"
    hub.repos["a/m"].mkdir()
    names = ["../../evil.pth", "/evil.pth", "x/../../evil.pth", "rwkv_vocab_v/../../evil.txt"]
    hub.extra_names = names
    with pytest.raises(DownloadError, match=r"holds no weights"):
        fetch("a/m", models)
    hub.extra_names = [*names, "pytorch_model.bin.index.json", "..\\evil.bin"]
    index = '{"weight_map": {"emb.weight": "../../evil.pth"}}'
    (hub.repos["a/m"] / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"Nothing outside the folder is read"):
        fetch("a/m", models)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_the_way(hub: HubServer, models: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    models.mkdir(parents=True)
    (models / ".RWKV-4-World-tiny.partial").symlink_to(outside)
    with pytest.raises(DownloadError, match=r"is a link, expected a folder"):
        fetch(REPO, models)
    assert everything(outside) == []


def test_link_in_place_of_what_is_on_its_way(hub: HubServer, models: Path, tmp_path: Path) -> None:
    partial = models / ".RWKV-4-World-tiny.partial"
    partial.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (partial / ".cache").symlink_to(tmp_path / "outside")
    with pytest.raises(DownloadError, match=r"\.cache is a link, expected a folder: remove it"):
        fetch(REPO, models)
    assert everything(tmp_path / "outside") == []


def test_token_goes_to_the_hub_and_not_to_its_store(
    hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(REPO, models)
    assert any(r.path.startswith("/lfs/") for r in hub.requests)
    for request in hub.requests:
        assert request.authorized is not request.path.startswith("/lfs/")


# Folders that are there already


def test_another_repository_of_the_same_name(hub: HubServer, models: Path) -> None:
    fetch(REPO, models)
    hub.repos["other/RWKV-4-World-tiny"] = hub.repos[REPO]
    with pytest.raises(DownloadError, match=r"holds 'StarRing2022/.*not other/RWKV-4-World-tiny"):
        fetch("other/RWKV-4-World-tiny", models)


def test_folder_made_by_hand(hub: HubServer, models: Path) -> None:
    folder = models / "RWKV-4-World-tiny"
    folder.mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"is in the way.*holds no weights"):
        fetch(REPO, models)
    shutil.copytree(hub.repos[REPO], folder, dirs_exist_ok=True)
    assert fetch(REPO, models) == folder
    assert hub.requests == []


def test_folder_that_lost_a_file(hub: HubServer, models: Path) -> None:
    folder = fetch(REPO, models)
    os.truncate(folder / "pytorch_model.bin", 100)
    with pytest.raises(DownloadError, match=r"'pytorch_model\.bin' changed or went away"):
        fetch(REPO, models)
    (folder / ".hub.json").write_text("[]")
    with pytest.raises(DownloadError, match=r"\.hub\.json is damaged; remove"):
        fetch(REPO, models)
    (folder / ".hub.json").unlink()
    os.mkfifo(folder / ".hub.json")
    with pytest.raises(DownloadError, match=r"\.hub\.json is damaged; remove"):
        fetch(REPO, models)


# Full and read-only file systems


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MB."""
    with small_disk_at(tmp_path / "disk", 24) as place:
        yield place


def test_disk_that_is_too_small(
    hub: HubServer, large: Tensors, tmp_path: Path, small_disk: Path
) -> None:
    hub.repos["a/large"] = write_hf_bin(tmp_path / "large", large)
    (small_disk / "filler").write_bytes(bytes(10 << 20))
    with pytest.raises(StorageError, match=r"needs 0.02 GB more in .* 0.01 GB are free. Make room"):
        fetch("a/large", small_disk / "models")
    assert hub.sent() < 1 << 20


@pytest.mark.slow
def test_disk_that_fills_up_on_the_way(
    hub: HubServer, large: Tensors, tmp_path: Path, small_disk: Path
) -> None:
    models = small_disk / "models"
    hub.repos["a/large"] = write_hf_bin(tmp_path / "large", large)
    hub.faults.bytes_per_second = 10e6
    process = fetching(hub, models, "a/large")
    wait_for(lambda: hub.sent() > 1e6)
    (small_disk / "filler").write_bytes(bytes(12 << 20))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "the disk is full. The files that arrived are kept: run this again to go on." in errors
    assert "Traceback" not in errors
    assert visible(models) == []

    (small_disk / "filler").unlink()
    hub.faults.bytes_per_second = None
    assert_holds(open_checkpoint(fetch("a/large", models)), large)


def test_folder_that_may_not_be_written(hub: HubServer, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=r"cannot be written: Read-only file system"):
        fetch(REPO, small_disk / "models")
