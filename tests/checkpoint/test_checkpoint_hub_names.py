"""Models of the hub by the names and addresses that people write and copy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.checkpoints import Tensors, write_hf_bin, write_pth
from support.hub_server import HubServer

from mlc_rwkv_world.checkpoint import resolve_source
from mlc_rwkv_world.checkpoint.hub_id import HubId, parse_hub_id
from mlc_rwkv_world.errors import DownloadError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubId("a/b")),
        ("a/b@main", HubId("a/b")),
        ("a/b@v1.0", HubId("a/b", None, "v1.0")),
        ("a/b@refs/pr/3", HubId("a/b", None, "refs/pr/3")),
        ("a/b@refs/pr/3/c.pth", HubId("a/b", "c.pth", "refs/pr/3")),
        (f"a/b@{COMMIT}/old/c.pth", HubId("a/b", "old/c.pth", COMMIT)),
        ("a/b@new%2Fthing/c.pth", HubId("a/b", "c.pth", "new/thing")),
        ("a/b@100%25", HubId("a/b", None, "100%")),
        ("hf://a/b@v1/c.bin", HubId("a/b", "c.bin", "v1")),
        # A name is taken as it stands, with whatever characters a file can have.
        ("a/b/RWKV-4 100%20 (模型)+#1?.pth", HubId("a/b", "RWKV-4 100%20 (模型)+#1?.pth")),
        ("a/b/x@y.pth", HubId("a/b", "x@y.pth")),
        # An address is decoded, once.
        ("https://huggingface.co/a/b/blob/main/100%25%20(%E6%A8%A1).pth",
         HubId("a/b", "100% (模).pth")),
        ("https://huggingface.co/a/b/resolve/main/a%2520b.pth", HubId("a/b", "a%20b.pth")),
        ("https://huggingface.co/a/b/resolve/main/c.pth?download=true", HubId("a/b", "c.pth")),
        ("https://huggingface.co/a/b/raw/v2/x/c.safetensors#top",
         HubId("a/b", "x/c.safetensors", "v2")),
        ("https://huggingface.co/a/b/tree/main", HubId("a/b")),
        ("https://huggingface.co/a/b/tree/v2/", HubId("a/b", None, "v2")),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F1", HubId("a/b", None, "refs/pr/1")),
        ("https://huggingface.co/a/b/blob/refs/pr/1/c.pth", HubId("a/b", "c.pth", "refs/pr/1")),
        (f"https://huggingface.co/a/b/commit/{COMMIT}", HubId("a/b", None, COMMIT)),
        ("https://huggingface.co/a/b?library=transformers", HubId("a/b")),
        ("http://HuggingFace.co/a/b/", HubId("a/b")),
        ("huggingface.co/a/b/blob/main/c.pth", HubId("a/b", "c.pth")),
        ("https://hf.co/a/b", HubId("a/b")),
    ],
)  # fmt: skip
def test_names_and_addresses(text: str, expected: HubId) -> None:
    found = parse_hub_id(text)
    assert found == expected
    # What messages and records call it means the same.
    assert parse_hub_id(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("https://huggingface.co/", "https://huggingface.co/a", "https://huggingface.co/a/b/c"),
        *("https://huggingface.co/datasets/a/b", "https://huggingface.co/a/b/blob/main"),
        *("https://huggingface.co/a/b/tree/main/old", "https://huggingface.co/a/b/tree"),
        *("https://huggingface.co/a/b/blob/main/README.md", "https://huggingface.co.evil.org/a/b"),
        *("https://huggingface.co/a/b/blob/main/%2e%2e/%2e%2e/c.pth", "https://evil.org/a/b"),
        *("https://huggingface.co/a/b/blob/main/%ff.pth", "https://huggingface.co/a%2Fc/b/d"),
        *("https://huggingface.co/a/b/blob/%2e%2e/c.pth", "https://huggingface.co@evil.org/a/b"),
        *("a/b@", "a/b@../c", "a/b@x y", "a/b@-x", "a/b@x~1", "a/b@/c.pth", "a/b@x/../y.pth"),
        *("a/b/x\n.pth", "a/b/x\x1b.pth", "a/b/..pth", "a/b/c\\d.pth", "a/b/c:d.pth", "a@b/c"),
        *("https://modelscope.cn/models/a/b", "ftp://huggingface.co/a/b", "hf://a"),
    ],
)
def test_what_names_no_model(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a model on the hub; expected owner/name"):
        parse_hub_id(text)


def test_addresses_of_the_server_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443/hub/")
    for text in (
        "https://mirror.example:8443/hub/a/b/resolve/main/c%20d.pth",
        "mirror.example:8443/hub/a/b/blob/main/c%20d.pth?download=true",
        "https://huggingface.co/a/b/resolve/main/c%20d.pth",
    ):
        assert parse_hub_id(text) == HubId("a/b", "c d.pth")
    with pytest.raises(
        UsageError, match=r"address of one of these at https://mirror\.example:8443"
    ):
        parse_hub_id("https://mirror.example/a/b")


def test_a_revision_given_apart() -> None:
    assert parse_hub_id("a/b/c.pth", "v1") == HubId("a/b", "c.pth", "v1")
    assert parse_hub_id("a/b@v1", "v1") == HubId("a/b", None, "v1")
    assert parse_hub_id("a/b", "main") == HubId("a/b")
    assert str(parse_hub_id("a/b/c.pth", "new/thing")) == "a/b@new%2Fthing/c.pth"
    with pytest.raises(UsageError, match=r"names the revision 'v2' and not 'v1'"):
        parse_hub_id("a/b@v2", "v1")
    for wrong in ("", "..", "a b", "-x", "x" * 300):
        with pytest.raises(UsageError, match=r"is no revision; give a branch, a tag or a commit"):
            parse_hub_id("a/b", wrong)


def test_folders_by_revision() -> None:
    assert HubId("a/b").folder_name == "b"
    assert HubId("a/b", "x/c d.pth").folder_name == "c d"
    assert HubId("a/b", None, "refs/pr/1").folder_name == "b@refs-pr-1"
    assert HubId("a/b", None, COMMIT).folder_name == "b@0123456789ab"


def test_files_with_any_legal_characters(
    tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["RWKV 4%20W (模型).pth", "a+b#1?.pth", "100%.pth", "plain.pth"]
    for name in names:
        write_pth(tmp_path / "served" / name, world)
    with HubServer({"a/b": tmp_path / "served"}) as hub:
        for variable, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(variable, value)
        for number, name in enumerate(names):
            models = tmp_path / str(number)
            folder = resolve_source(f"a/b/{name}", models)
            assert folder == models / name.removesuffix(".pth")
            assert (folder / name).read_bytes() == (tmp_path / "served" / name).read_bytes()
        encoded = f"{hub.endpoint}/a/b/resolve/main/RWKV%204%2520W%20(%E6%A8%A1%E5%9E%8B).pth"
        models = tmp_path / "address"
        assert resolve_source(f"{encoded}?download=true", models) == models / "RWKV 4%20W (模型)"


def test_revisions_lie_side_by_side(
    tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = write_hf_bin(tmp_path / "main", world)
    old = write_hf_bin(tmp_path / "old", world, "float16")
    with HubServer({"a/b": main}, revisions={"a/b": {"v1": old}}) as hub:
        for variable, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(variable, value)
        models = tmp_path / "models"
        for source, revision, folder, served in (
            ("a/b", None, "b", main),
            ("a/b@v1", None, "b@v1", old),
            ("a/b", "v1", "b@v1", old),
            (f"{hub.endpoint}/a/b/tree/v1", None, "b@v1", old),
            ("a/b", hub.revision("a/b"), f"b@{hub.revision('a/b')[:12]}", main),
        ):
            got = resolve_source(source, models, revision=revision)
            assert got == models / folder
            assert digest(got) == digest(served)
        with pytest.raises(DownloadError, match=r"a/b has no revision 'v2' at http://127"):
            resolve_source("a/b@v2", models)
        with pytest.raises(UsageError, match=r"is a path, and only a model on the hub has a rev"):
            resolve_source(str(main), models, revision="v1")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
