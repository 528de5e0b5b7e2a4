"""Asks the hub, through huggingface_hub, and bounds what a server may answer.

The library knows proxies, certificates, mirrors, retries and Xet. What it leaves open is closed
here: a list of files comes from the server that was asked and has a largest size, a file ends at
the size that was declared, and what the library has to say goes where all our words go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from mlc_rwkv_world import __version__
from mlc_rwkv_world.checkpoint import hub_settings
from mlc_rwkv_world.checkpoint.hub_id import HubId, is_commit
from mlc_rwkv_world.checkpoint.stored import MAX_TABLE
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.console import speaking_for, tqdm_class
from mlc_rwkv_world.errors import DownloadError, RwkvWorldError

_TIMEOUT = 30  # seconds until a silent server counts as unreachable
_LARGEST = 10**15
_REDIRECTS = 5

# These may answer in place of a mirror that has no copy of its own. They get no token.
_HUB_ITSELF = ("https://huggingface.co", "https://hf.co")

_PORTS = {"http": 80, "https": 443}
_PROGRAM = "mlc-rwkv-world"


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

    name: str
    url: str
    etag: str
    size: int


class HubClient:
    """One server, as the hub's variables describe it when this is made."""

    def __init__(self) -> None:
        """Raises DownloadError where HF_ENDPOINT is no address."""
        self._endpoint = hub_settings.endpoint()
        self._home = _origin(self._endpoint)
        # Nothing else makes the library look for none itself.
        self._token = hub_settings.token() or False

    def files(self, source: HubId) -> tuple[str, list[str]]:
        """The commit that `source` stands for now, and the names of the repository's files."""
        url = f"{self._endpoint}/api/models/{source.repo}"
        if source.revision is not None:
            url += f"/revision/{quote(source.revision, safe='')}"
        body = self._read_list(url)
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
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(source.repo, name, revision=commit, endpoint=self._endpoint)
        with _asking(url):
            found = get_hf_file_metadata(
                url,
                token=self._token,
                timeout=_TIMEOUT,
                endpoint=self._endpoint,
                library_name=_PROGRAM,
                library_version=__version__,
            )
        if not found.etag or found.size is None or not 0 <= found.size < _LARGEST:
            raise DownloadError(
                f"{url} was answered without an ETag and a size: that is not a hub. Check "
                "HF_ENDPOINT."
            )
        _require_encryption(self._home, url, _joined(url, found.location))
        return RemoteFile(name, url, found.etag, found.size)

    def download(self, source: HubId, commit: str, remote: RemoteFile, folder: Path) -> Path:
        """Fetches one file into `folder`, with progress on a terminal; gives its path there.

        Raises DownloadError where more arrives than was declared, Refused and Unreachable, and
        OSError where it cannot be written.
        """
        from huggingface_hub import hf_hub_download

        arrived = 0

        def watch(count: int) -> None:
            nonlocal arrived
            arrived += count
            if arrived > remote.size:
                raise DownloadError(
                    f"{remote.url} sends more than the {remote.size} bytes that it declared; "
                    "what arrived was removed. The server is broken or hostile."
                )

        label = remote.name.split("/")[-1]
        label = label if len(label) <= 40 else f"…{label[-39:]}"
        with _asking(remote.url):
            path = hf_hub_download(
                source.repo,
                remote.name,
                revision=commit,
                local_dir=folder,
                # What the hub's cache has, it has only in part or by a link that leads out of it.
                cache_dir=folder / ".cache",
                endpoint=self._endpoint,
                token=self._token,
                etag_timeout=_TIMEOUT,
                tqdm_class=tqdm_class(label, watch, hidden=hub_settings.shows_no_progress()),
                library_name=_PROGRAM,
                library_version=__version__,
            )
        return Path(path)

    def _read_list(self, url: str) -> bytes:
        """The body of an answer that describes files; redirects stay at the hub."""
        from huggingface_hub import get_session

        asked = url
        for _ in range(_REDIRECTS + 1):
            headers = {"User-Agent": f"{_PROGRAM}/{__version__}", "Accept-Encoding": "identity"}
            if self._token and _origin(url) == self._home:
                headers["Authorization"] = f"Bearer {self._token}"
            with (
                _asking(url),
                get_session().stream(
                    "GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=False
                ) as answer,
            ):
                if not answer.has_redirect_location:
                    return _body(answer, url)
                target = _joined(url, answer.headers["Location"])
                _require_encryption(_origin(url), url, target)
                if _origin(target) not in (self._home, *map(_origin, _HUB_ITSELF)):
                    raise DownloadError(
                        f"{url} redirects to {quoted(target, 200)}, another server than the one "
                        "that was asked: refused. Check HF_ENDPOINT."
                    )
                url = target
        raise DownloadError(f"{quoted(asked, 200)}: more than {_REDIRECTS} redirects in a row.")


def _body(answer: Any, url: str) -> bytes:
    if answer.status_code != 200:
        raise Refused(url, answer.status_code, answer.headers.get("X-Error-Code", ""))
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{url} was answered compressed, which was not asked for.")
    body = bytearray()
    for piece in answer.iter_raw():
        body += piece
        if len(body) > MAX_TABLE:
            raise DownloadError(
                f"{url} was answered with more than {MAX_TABLE} bytes, too many for a model's list "
                "of files: refused."
            )
    return bytes(body)


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turn what the library raises into errors of ours, and its log into messages of ours."""
    try:
        with speaking_for("huggingface_hub"):
            yield
    except (RwkvWorldError, Refused, Unreachable):
        raise
    except Exception as error:
        # Connections raise errors of whichever HTTP library huggingface_hub uses.
        raise _named(error, url) from error


def _named(error: Exception, url: str) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # It says what the library looked for next, and not what was wrong.
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        answer = error.response
        return Refused(url, answer.status_code, answer.headers.get("X-Error-Code", ""))
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return Unreachable(f"{url}: {error}")


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


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location


def _require_encryption(origin: tuple[str, str, int | None], url: str, target: str) -> None:
    if origin[0] == "https" != _origin(target)[0]:
        raise DownloadError(
            f"{url} redirects to {quoted(target, 200)}, which is not encrypted: refused."
        )
