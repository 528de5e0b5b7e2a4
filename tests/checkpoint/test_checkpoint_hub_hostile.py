"""Hubs that send more than they say, lead elsewhere, or want a token that is not theirs."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Tensors, write_hf_bin
from support.hub_answers import answering
from support.hub_server import serving

from mlc_rwkv_world.checkpoint import fetch, open_checkpoint
from mlc_rwkv_world.checkpoint.hub_client import HubClient
from mlc_rwkv_world.checkpoint.hub_id import HubId
from mlc_rwkv_world.errors import CheckpointError, DownloadError

REPO = "o/n"
COMMIT = "a" * 40
FLOOD = 600 << 20
MODEL = "pytorch_model.bin"

# Gives back, of what a process of its own fetched: the error, and the memory that it took.
_FETCH = """
import json, re, sys, time
from pathlib import Path
from mlc_rwkv_world.checkpoint import fetch
from mlc_rwkv_world.errors import RwkvWorldError
time.sleep = lambda _: None
status = lambda: Path("/proc/self/status").read_text()
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", status())[1]) << 10
try:
    fetch("o/n", Path(sys.argv[1]))
except RwkvWorldError as error:
    print(json.dumps([type(error).__name__, str(error), peak()]))
"""


@dataclass
class Hub:
    """Answers as `answer` does, or as an honest hub with the files of `folder`."""

    folder: Path
    answer: Callable[[Handler], bool] = lambda _: False
    requests: list[tuple[int, str, str, str | None]] = field(default_factory=list)
    sent: int = 0

    def __enter__(self) -> Hub:
        self._servers = []
        # The second is another server to whoever was told of the first.
        for _ in range(2):
            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            server.hub = self  # type: ignore[attr-defined]
            serving(server).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def elsewhere(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def tokens(self) -> set[tuple[str, str | None]]:
        """What each server was told."""
        names = {server.server_port: i for i, server in enumerate(self._servers)}
        return {(("asked", "elsewhere")[names[port]], token) for port, _, _, token in self.requests}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub: Hub = self.server.hub  # type: ignore[attr-defined]
        self.port = self.server.server_port  # type: ignore[attr-defined]
        self.hub.requests.append(
            (self.port, self.command, self.path, self.headers.get("Authorization"))
        )
        try:
            if not self.hub.answer(self):
                self.honest()
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def honest(self) -> None:
        if self.is_list:
            names = [path.name for path in self.hub.folder.iterdir()]
            siblings = [{"rfilename": name} for name in names]
            self.send(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
            return
        data = (self.hub.folder / self.path.split("/")[-1]).read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send(206 if begin else 200, data[begin:], **headers)

    @property
    def is_list(self) -> bool:
        return self.path.startswith("/api/")

    @property
    def is_get(self) -> bool:
        return self.command == "GET"

    def send(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """True: nothing else is to be answered."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.is_get:
            self.wfile.write(body)
        return True

    def flood(self, status: int, how: str, piece: bytes = b" " * (1 << 20), **headers: str) -> None:
        """A body of 600 MB."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if how == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif how == "length":
            self.send_header("Content-Length", str(FLOOD))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(FLOOD // len(piece)):
            if how == "chunked":
                self.wfile.write(b"%x\r\n" % len(piece))
            self.wfile.write(piece + (b"\r\n" if how == "chunked" else b""))
            self.hub.sent += len(piece)
        self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, world: Tensors, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(write_hf_bin(tmp_path / "served", world)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        # What is tried again is tried at once.
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield server


def refusal(tmp_path: Path) -> str:
    with pytest.raises(DownloadError) as raised:
        fetch(REPO, tmp_path / "models")
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# More than was declared


@pytest.mark.parametrize("how", ["chunked", "length", "close"])
@pytest.mark.parametrize("name", ["config.json", MODEL])
def test_files_are_cut_off_at_their_declared_size(
    hub: Hub, tmp_path: Path, how: str, name: str
) -> None:
    def answer(request: Handler) -> bool:
        if not request.path.endswith(name) or not request.is_get:
            return False
        request.flood(200, how)
        return True

    hub.answer = answer
    size = (hub.folder / name).stat().st_size
    assert f"{name} sends more than the {size} bytes that it declared" in refusal(tmp_path)
    assert hub.sent < 64 << 20
    assert nbytes(tmp_path / "models") < (1 << 20)
    hub.answer = lambda _: False
    open_checkpoint(fetch(REPO, tmp_path / "models"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("where", ["list", "error", "redirect", "head", "list, compressed"])
def test_no_other_answer_fills_memory(hub: Hub, tmp_path: Path, where: str) -> None:
    def answer(request: Handler) -> bool:
        if where == "list" and request.is_list:
            request.flood(200, "chunked", Content_Type="application/json")
        elif where == "list, compressed" and request.is_list:
            request.send(200, gzip.compress(b" " * (64 << 20), 1), Content_Encoding="gzip")
        elif where == "error" and request.is_list:
            request.flood(500, "close")
        elif where == "redirect" and request.is_list:
            request.flood(302, "chunked", Location="/again")
        elif where == "head" and not request.is_get:
            # Nothing may follow the head of an answer to this.
            request.flood(200, "length", ETag='"abc"')
        else:
            return False
        return True

    hub.answer = answer
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, tmp_path / "models"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    kind, message, peak = json.loads(done.stdout)
    assert kind in ("DownloadError", "StorageError")
    assert str(hub.endpoint) in message or "needs" in message
    assert peak < 160 << 20
    assert hub.sent < 64 << 20


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"siblings": {}}', b'{"siblings": [1]}', b"\xff", b"[" * 100_000),
        *(b'{"siblings": [{"rfilename": 3}]}', b'{"siblings": [], "sha": 3}', b"9" * 5000),
        *(b'{"siblings": []}', b'{"siblings": [], "sha": "../../x"}'),
    ],
)
def test_lists_that_are_none(hub: Hub, tmp_path: Path, body: bytes) -> None:
    hub.answer = lambda request: request.is_list and request.send(200, body)
    assert "something else than a model's list of files. That is not a hub" in refusal(tmp_path)


@pytest.mark.parametrize(
    "headers",
    [{}, {"ETag": '"x"'}, {"ETag": '"x"', "Content_Length": "-1"}, {"Content_Length": "3"},
     {"ETag": '"x"', "Content_Length": "9" * 20}],
)  # fmt: skip
def test_files_without_a_size_or_a_checksum(
    hub: Hub, tmp_path: Path, headers: dict[str, str]
) -> None:
    def answer(request: Handler) -> bool:
        if request.is_list or request.is_get:
            return False
        request.send_response(200)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Connection", "close")
        request.end_headers()
        request.close_connection = True
        return True

    hub.answer = answer
    message = refusal(tmp_path)
    # Not every head reaches us.
    assert "without an ETag and a size: that is not a hub" in message or "Content-Length" in message


def test_a_server_that_sends_another_part(hub: Hub, tmp_path: Path) -> None:
    size = (hub.folder / MODEL).stat().st_size

    def answer(request: Handler) -> bool:
        if not request.path.endswith(MODEL) or not request.is_get:
            return False
        if "Range" in request.headers:
            request.send(206, b"x", Content_Range=f"bytes 0-0/{size}")
        else:
            request.send(200, b"x" * 100, Content_Length=str(size))
            request.close_connection = True
        return True

    hub.answer = answer
    assert "could not be fetched" in refusal(tmp_path)
    assert not (tmp_path / "models" / "n").exists()


def test_a_server_that_knows_no_ranges_begins_anew(hub: Hub, tmp_path: Path) -> None:
    data = (hub.folder / MODEL).read_bytes()
    answered = []

    def answer(request: Handler) -> bool:
        if not request.path.endswith(MODEL) or not request.is_get:
            return False
        answered.append(request.headers.get("Range"))
        part = data[: len(data) // 2] if len(answered) == 1 else data
        request.send(200, part, Content_Length=str(len(data)))
        request.close_connection = True
        return True

    hub.answer = answer
    open_checkpoint(fetch(REPO, tmp_path / "models"))
    assert len(answered) == 2


# Elsewhere, and the token


def test_the_token_stays_with_the_server_that_was_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def answer(request: Handler) -> bool:
        if request.is_list or request.hub.elsewhere.endswith(f":{request.port}"):
            return False
        data = (hub.folder / request.path.split("/")[-1]).read_bytes()
        request.send(
            302,
            Location=request.hub.elsewhere + request.path,
            X_Repo_Commit=COMMIT,
            X_Linked_ETag=f'"{hashlib.sha256(data).hexdigest()}"',
            X_Linked_Size=str(len(data)),
        )
        return True

    hub.answer = answer
    open_checkpoint(fetch(REPO, tmp_path / "models"))
    assert hub.tokens() == {("asked", "Bearer hf_secret"), ("elsewhere", None)}


@pytest.mark.parametrize("value", ["1", "true"])
def test_no_token_where_it_is_not_to_be_used_unasked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", value)
    fetch(REPO, tmp_path / "models")
    assert hub.tokens() == {("asked", None)}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_lists_and_checksums_come_from_no_other_server(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.answer = lambda r: r.is_list and r.send(status, Location=hub.elsewhere + r.path)
    assert "redirects to" in (message := refusal(tmp_path))
    assert "another server than the one that was asked: refused" in message
    hub.answer = lambda r: not r.is_list and r.send(status, Location=hub.elsewhere + r.path)
    assert "without an ETag and a size" in refusal(tmp_path)
    assert hub.tokens() == {("asked", "Bearer hf_secret")}


def test_repositories_that_moved_are_followed(hub: Hub, tmp_path: Path) -> None:
    def answer(request: Handler) -> bool:
        if "/o/n" not in request.path:
            return False
        request.send(307, Location=request.path.replace("/o/n", "/new/name"))
        return True

    hub.answer = answer
    open_checkpoint(fetch(REPO, tmp_path / "models"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "'file:///etc/passwd' is no address that begins with http"),
        ("ftp://127.0.0.1/x", "is no address"),
        ("http://[", "is no address"),
        ("http://127.0.0.1:99999999/", "is no address"),
        ("//", "more than 5 redirects in a row"),
        ("http://127.0.0.1:1/\u00e9 x", "another server than the one that was asked"),
        ("", "more than 5 redirects in a row"),
        ("/again", "more than 5 redirects in a row"),
    ],
)
def test_redirects_that_lead_nowhere(hub: Hub, tmp_path: Path, location: str, message: str) -> None:
    hub.answer = lambda request: request.send(302, Location=location)
    assert message in refusal(tmp_path)
    # Where a file is redirected to is for the library to follow.
    hub.answer = lambda request: (
        request.is_get and not request.is_list and request.send(302, Location=location)
    )
    assert "could not be fetched" in refusal(tmp_path)
    assert nbytes(tmp_path / "models") < 1 << 20


def test_no_redirect_out_of_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)

    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        location = {"Location": "http://huggingface.co/x"}
        return 302, {**location, "X-Repo-Commit": COMMIT, "ETag": "x", "X-Linked-Size": "3"}, b""

    with answering(answer):
        client = HubClient()
        for ask in (
            lambda: client.files(HubId(REPO)),
            lambda: client.describe(HubId(REPO), COMMIT, MODEL),
        ):
            with pytest.raises(DownloadError, match=r"'http://.*', which is not encrypted: refus"):
                ask()


def test_an_endpoint_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("huggingface.co", "file:///etc", "http://", "https://[x"):
        monkeypatch.setenv("HF_ENDPOINT", value)
        assert "is no address that begins with http:// or https://" in refusal(tmp_path)


# Checksums


def test_what_no_checksum_covers_says_what_to_remove(hub: Hub, tmp_path: Path) -> None:
    """An ETag need not be a digest, and the hub may hold what is no model."""
    (hub.folder / MODEL).write_text('{"error": "not found"}')

    def answer(request: Handler) -> bool:
        if request.is_list or request.is_get:
            return False
        size = (hub.folder / request.path.split("/")[-1]).stat().st_size
        request.send(200, ETag='W/"a\x1b[31mbc"', Content_Length=str(size), X_Repo_Commit=COMMIT)
        return True

    hub.answer = answer
    folder = fetch(REPO, tmp_path / "models")
    with pytest.raises(CheckpointError, match=f"is JSON text.* Remove '{folder}': the same com"):
        open_checkpoint(folder)
