"""Talks to the hub over HTTP, with a bound on everything that it answers.

A server is believed what it says of its files and no more: nothing is read beyond the size that
was declared, no body of a redirect or an error is read at all, and the token goes to the server
that was asked for it and to none that it redirects to.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from mlc_rwkv_world import __version__
from mlc_rwkv_world.checkpoint import hub_settings
from mlc_rwkv_world.checkpoint.hub_id import HubId, is_commit
from mlc_rwkv_world.checkpoint.stored import MAX_TABLE
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.console import Bar
from mlc_rwkv_world.errors import DownloadError

_TIMEOUT = 30  # seconds until a silent server counts as unreachable
_RETRIES = 5  # in a row without a byte that arrived
_PIECE = 1 << 20
_REDIRECTS = 5
_REDIRECTING = (301, 302, 303, 307, 308)
_BUSY = (408, 429)

# These may answer in place of a mirror that has no copy of its own. They get no token.
_HUB_ITSELF = ("https://huggingface.co", "https://hf.co")

_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """The hub answered with `status`, and `code` where it says more."""

    def __init__(self, url: str, status: int, code: str) -> None:
        super().__init__(f"{url} was answered with status {status}")
        self.status = status
        self.code = code


class Unreachable(Exception):
    """A connection that failed or broke; the cause is the error below."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at the hub: `etag` is its checksum where it is a digest, `size` its bytes."""

    url: str
    etag: str
    size: int


class HubClient:
    """One server, as the hub's variables describe it when this is made."""

    def __init__(self) -> None:
        self._endpoint = hub_settings.endpoint()
        self._token = hub_settings.token()
        self._opener = urllib.request.build_opener(
            _AsAnswered, urllib.request.HTTPSHandler(context=_tls())
        )

    def files(self, source: HubId) -> tuple[str, list[str]]:
        """The commit that `source` stands for now, and the names of the repository's files."""
        url = f"{self._endpoint}/api/models/{source.repo}"
        if source.revision is not None:
            url += f"/revision/{quote(source.revision, safe='')}"
        with closing(self._ask("GET", url)) as answer:
            self._require_ok(answer)
            body = _read_all(answer, url)
        try:
            match json.loads(body):
                case {"siblings": list(siblings), "sha": str(commit)} if is_commit(commit):
                    names = [sibling["rfilename"] for sibling in siblings]
                    if all(isinstance(name, str) for name in names):
                        return commit, names
        except (ValueError, RecursionError, TypeError, KeyError):
            pass
        raise DownloadError(
            f"{source} could not be fetched: {url} was answered with something else than a "
            "model's list of files. That is not a hub: check HF_ENDPOINT."
        )

    def describe(self, source: HubId, commit: str, name: str) -> RemoteFile:
        """What the hub declares of one file."""
        url = f"{self._endpoint}/{source.repo}/resolve/{quote(commit, safe='')}/{quote(name)}"
        with closing(self._ask("HEAD", url)) as answer:
            if answer.status not in _REDIRECTING:
                self._require_ok(answer)
            headers = answer.headers
        etag = headers.get("X-Linked-Etag") or headers.get("ETag")
        size = headers.get("X-Linked-Size")
        if size is None and answer.status not in _REDIRECTING:
            size = headers.get("Content-Length")
        if not etag or size is None or not size.isdecimal() or len(size) > 15:
            raise DownloadError(
                f"{url} was answered without an ETag and a size: that is not a hub. Check "
                "HF_ENDPOINT."
            )
        return RemoteFile(url, etag.removeprefix("W/").strip('"'), int(size))

    def download(self, remote: RemoteFile, file: BinaryIO, label: str) -> None:
        """Appends to `file` what it lacks of `remote`, with progress on a terminal.

        Raises DownloadError where more arrives than was declared, Refused and Unreachable.
        """
        hidden = hub_settings.shows_no_progress()
        what = label if len(label) <= 40 else f"…{label[-39:]}"
        with closing(Bar("B", what, lasting=True, hidden=hidden)) as bar:
            bar.show(file.tell(), remote.size)
            failures = 0
            while file.tell() < remote.size:
                before = file.tell()
                try:
                    self._append(remote, file, bar)
                    if file.tell() < remote.size:
                        raise Unreachable(f"{remote.url}: the connection ended early")
                except Unreachable:
                    failures = 0 if file.tell() > before else failures + 1
                    if failures > _RETRIES:
                        raise
                    time.sleep(min(1 << failures, 8))

    def _append(self, remote: RemoteFile, file: BinaryIO, bar: Bar) -> None:
        offset = file.tell()
        ranges = {"Range": f"bytes={offset}-"} if offset else {}
        with closing(self._ask("GET", remote.url, ranges, anywhere=True)) as answer:
            if answer.status in _BUSY:
                raise Unreachable(f"{remote.url} was answered with status {answer.status}")
            self._require_ok(answer)
            if offset and answer.status != 206:
                # It sends the whole file whatever was asked for.
                file.seek(0)
                file.truncate()
            elif offset and not answer.headers.get("Content-Range", "").startswith(
                f"bytes {offset}-"
            ):
                raise DownloadError(f"{remote.url} sends another part than the one asked for.")
            for piece in _pieces(answer, remote.url):
                if file.tell() + len(piece) > remote.size:
                    file.seek(0)
                    file.truncate()
                    raise DownloadError(
                        f"{remote.url} sends more than the {remote.size} bytes that it declared; "
                        "what arrived was removed. The server is broken or hostile."
                    )
                file.write(piece)
                bar.show(file.tell(), remote.size)

    def _ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        *,
        anywhere: bool = False,
    ) -> http.client.HTTPResponse:
        """The first answer that is no redirect; one that leads elsewhere unless `anywhere`."""
        for _ in range(_REDIRECTS + 1):
            answer = self._request(method, url, headers or {})
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTING or not location:
                return answer
            with ExitStack() as unless_returned:
                unless_returned.callback(answer.close)
                target = _redirected(url, location)
                here, there = _origin(url), _origin(target)
                if not anywhere and there not in (here, *map(_origin, _HUB_ITSELF)):
                    unless_returned.pop_all()
                    return answer
                if here[0] == "https" != there[0]:
                    raise DownloadError(
                        f"{url} redirects to {quoted(target, 200)}, which is not encrypted: "
                        "refused."
                    )
            url = target
        raise DownloadError(f"{quoted(url, 200)}: more than {_REDIRECTS} redirects in a row.")

    def _request(self, method: str, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        origin = _origin(url)
        request = urllib.request.Request(url, method=method, headers=headers)
        request.add_header("User-Agent", f"mlc-rwkv-world/{__version__}")
        # What is declared and what is sent can be compared only as they are.
        request.add_header("Accept-Encoding", "identity")
        if self._token and origin == _origin(self._endpoint):
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT)
        # Addresses that no request can carry are ValueErrors.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{url}: {error}") from error
        return answer

    def _require_ok(self, answer: http.client.HTTPResponse) -> None:
        if answer.status in _REDIRECTING:
            raise DownloadError(
                f"{answer.url} redirects to {quoted(answer.headers.get('Location'), 200)}, another "
                "server than the one that was asked: refused. Check HF_ENDPOINT."
            )
        if answer.status not in (200, 206):
            code = answer.headers.get("X-Error-Code") or ""
            raise Refused(answer.url, answer.status, code)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{answer.url} was answered compressed, which was not asked for.")


class _AsAnswered(urllib.request.HTTPErrorProcessor):
    """Leaves redirects and errors to the caller."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def _tls() -> ssl.SSLContext:
    """The system's certificates, and those that a user names as for other tools."""
    context = ssl.create_default_context()
    # Some builds of Python find none of the system's.
    with suppress(ImportError):
        context.load_verify_locations(import_module("certifi").where())
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := os.environ.get(variable):
            context.load_verify_locations(bundle)
    return context


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port. Raises DownloadError where `url` is no address of the web's."""
    try:
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname:
            return parts.scheme, parts.hostname.lower(), parts.port or _PORTS[parts.scheme]
    except ValueError:
        pass
    raise DownloadError(
        f"{quoted(url, 200)} is no address that begins with http:// or https://. Check HF_ENDPOINT."
    )


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location


def _pieces(answer: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    try:
        while piece := answer.read1(_PIECE):
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {error}") from error


def _read_all(answer: http.client.HTTPResponse, url: str) -> bytes:
    """The body of an answer that describes files."""
    body = bytearray()
    for piece in _pieces(answer, url):
        body += piece
        if len(body) > MAX_TABLE:
            raise DownloadError(
                f"{url} was answered with more than {MAX_TABLE} bytes, too many for a model's list "
                "of files: refused."
            )
    return bytes(body)
