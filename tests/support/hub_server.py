"""A local server that speaks as much of the Hugging Face hub's HTTP API as downloads need.

It serves folders as repositories: their description, their list of files, and the files
with the headers that huggingface_hub reads (ETag, X-Repo-Commit, X-Linked-*, ranges).
Faults can be switched on: slow or dying connections, wrong bytes, gated repositories.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_LFS_FROM = 1 << 20  # bytes; larger files are stored, and answered, as git-lfs does
_PIECE = 1 << 16

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BLOB = re.compile(r"/lfs/([0-9a-f]{64})")


def serving(server: ThreadingHTTPServer) -> threading.Thread:
    """A thread, to be started, that serves until `shutdown`, for which it looks often."""
    return threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)


@dataclass
class Request:
    """One request that the server answered: `sent` is the number of body bytes."""

    method: str
    path: str
    range: str | None
    authorized: bool
    status: int = 0
    sent: int = 0


@dataclass
class Faults:
    """What goes wrong, for all files of a megabyte and more. Change it while the server runs."""

    bytes_per_second: float | None = None
    drop_after: int | None = None  # close the connection after so many bytes of a body
    drops: int = 1 << 30  # how often
    corrupt: bool = False  # flip the last byte of each body
    gated: bool = False
    private: bool = False
    status: int | None = None  # answer everything with this


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    sha256: str
    git_sha1: str

    @property
    def is_lfs(self) -> bool:
        return self.size >= _LFS_FROM

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_sha1


@dataclass
class HubServer:
    """Use it as a context manager; `repos` maps "owner/name" to the folder that it serves, and
    `revisions` the branches beside its main one.

    Large files are redirected to another host name, as the hub redirects to its store, unless
    `redirect` is off. `extra_names` are listed as files of every repository, unchecked.
    """

    repos: dict[str, Path]
    revisions: dict[str, dict[str, Path]] = field(default_factory=dict)
    redirect: bool = True
    extra_names: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._files: dict[Path, _File] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self._thread = serving(self._http)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._http.server_port

    @property
    def endpoint(self) -> str:
        """The address to put into HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that make huggingface_hub use this server and keep its own files in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def sent(self, ending: str = "") -> int:
        """Body bytes sent so far for paths with this ending (git-lfs blobs by their digest)."""
        return sum(r.sent for r in self.requests if r.method == "GET" and r.path.endswith(ending))

    def revision(self, repo: str, branch: str = "main") -> str:
        """The commit that a branch stands at."""
        return hashlib.sha1(f"{repo} {branch}".encode()).hexdigest()

    def folder(self, repo: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the files of a branch or commit."""
        for branch, folder in ({"main": self.repos[repo]} | self.revisions.get(repo, {})).items():
            commit = self.revision(repo, branch)
            if revision in (branch, commit):
                return commit, folder
        return None

    def names(self, folder: Path) -> list[str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in files) + self.extra_names

    def file(self, folder: Path, name: str) -> _File | None:
        path = folder / name
        if not path.is_file():
            return None
        if path not in self._files:
            data = path.read_bytes()
            blob = b"blob %d\0" % len(data) + data
            self._files[path] = _File(
                path,
                len(data),
                hashlib.sha256(data).hexdigest(),
                hashlib.sha1(blob).hexdigest(),
            )
        return self._files[path]

    def blob(self, sha256: str) -> _File | None:
        return next((file for file in self._files.values() if file.sha256 == sha256), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self._hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        # Still encoded: a revision's name can hold a slash.
        path = urlsplit(self.path).path
        self._request = Request(
            self.command, path, self.headers.get("Range"), "Authorization" in self.headers
        )
        self._hub.requests.append(self._request)
        faults = self._hub.faults
        try:
            if faults.status is not None:
                self._send_error(faults.status, "", "broken on purpose")
            elif match := _BLOB.fullmatch(path):
                self._send_file(self._hub.blob(match[1]), {})
            elif match := _TREE.fullmatch(path) or _INFO.fullmatch(path) or _FILE.fullmatch(path):
                self._answer_repo(match)
            else:
                self._send_error(404, "", f"no such page: {path}")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer_repo(self, match: re.Match[str]) -> None:
        hub, repo = self._hub, match[1]
        if repo not in hub.repos:
            return self._send_error(404, "RepoNotFound", "Repository not found")
        if hub.faults.private:
            return self._send_error(401, "RepoNotFound", "Invalid username or password.")
        found = hub.folder(repo, unquote(match[2] or "main"))
        if found is None:
            return self._send_error(404, "RevisionNotFound", "Invalid rev id")
        revision, folder = found
        if match.re is _INFO:
            return self._send_json(
                {
                    "_id": "0",
                    "id": repo,
                    "modelId": repo,
                    "sha": revision,
                    "private": False,
                    "gated": "auto" if hub.faults.gated else False,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in hub.names(folder)],
                }
            )
        if match.re is _TREE:
            return self._send_json([self._tree_entry(folder, name) for name in hub.names(folder)])
        if hub.faults.gated and not self.headers.get("Authorization"):
            return self._send_error(401, "GatedRepo", f"Access to model {repo} is restricted.")
        file = hub.file(folder, unquote(match[3]))
        if file is None:
            return self._send_error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": revision}
        if file.is_lfs and hub.redirect:
            headers |= {
                "X-Linked-Size": str(file.size),
                "X-Linked-Etag": f'"{file.sha256}"',
                "Location": f"http://localhost:{hub.port}/lfs/{file.sha256}",
            }
            return self._send(302, headers, b"Found. Redirecting.")
        return self._send_file(file, headers)

    def _tree_entry(self, folder: Path, name: str) -> dict[str, Any]:
        file = self._hub.file(folder, name)
        if file is None:
            return {"type": "file", "path": name, "size": 0, "oid": "0" * 40}
        entry: dict[str, Any] = {
            "type": "file",
            "path": name,
            "size": file.size,
            "oid": file.git_sha1,
        }
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
        return entry

    def _send_json(self, content: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send_error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self._request.sent = len(body)

    def _send_file(self, file: _File | None, headers: dict[str, str]) -> None:
        if file is None:
            return self._send_error(404, "EntryNotFound", "Entry not found")
        begin, end = 0, file.size
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin = int(match[1])
            end = min(end, int(match[2]) + 1) if match[2] else end
            if begin >= file.size:
                return self._send_error(416, "", "range beyond the end")
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{file.size}"}
        self._request.status = 206 if match else 200
        self.send_response(self._request.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("ETag", f'"{file.etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            self._send_body(file, begin, end)

    def _send_body(self, file: _File, begin: int, end: int) -> None:
        faults = self._hub.faults if file.is_lfs else Faults()
        started = time.monotonic()
        with file.path.open("rb") as source:
            source.seek(begin)
            place = begin
            while place < end:
                piece = source.read(min(_PIECE, end - place))
                place += len(piece)
                if faults.corrupt and place == end:
                    piece = piece[:-1] + bytes([piece[-1] ^ 1])
                self.wfile.write(piece)
                self._request.sent += len(piece)
                dies = faults.drop_after is not None and self._request.sent >= faults.drop_after
                if dies and faults.drops > 0:
                    faults.drops -= 1
                    self.close_connection = True
                    return
                if faults.bytes_per_second:
                    due = self._request.sent / faults.bytes_per_second
                    time.sleep(max(0.0, due - (time.monotonic() - started)))
