"""Downloads a model from the Hugging Face hub, whole or not at all.

Files arrive in a hidden folder beside the model's place and move there together at the
end, so a model that is in its place is complete. A download that was killed leaves the
hidden folder, and the next one goes on where it stopped. huggingface_hub does the
talking; the file's name, place and checksum are ours to decide and check.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mlc_rwkv_world.artifact.atomic import locked, write_file
from mlc_rwkv_world.artifact.layout import TOKENIZER_MODEL
from mlc_rwkv_world.checkpoint.folder import (
    CONFIG,
    find_weights,
    index_owners,
    is_plain_name,
    layouts,
    read_json,
)
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import (
    CheckpointError,
    DownloadError,
    RwkvWorldError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_RECORD = ".hub.json"
_EXTRAS = (CONFIG, "generation_config.json", TOKENIZER_MODEL, "rwkv_vocab_v*.txt")
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<file>(?:[\w.-]+/)*[A-Za-z0-9][\w.-]*\.(?:pth|pt|bin|safetensors)))?",
    re.ASCII,
)
_TIMEOUT = 30  # seconds until a silent hub counts as unreachable

_log = logging.getLogger(__name__)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, and one weight file of it where it holds several."""

    repo: str
    file: str | None = None

    @property
    def folder_name(self) -> str:
        """The model's name in the models folder."""
        if self.file is not None:
            return Path(self.file).stem
        return self.repo.split("/")[1]

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}/{self.file}"


def parse_hub_id(text: str) -> HubId:
    """Reads `owner/name` or `owner/name/file.pth`; UsageError where `text` is neither."""
    match = _HUB_ID.fullmatch(text)
    if match is None or ".." in text:
        raise UsageError(
            f"{quoted(text)} is not a model on the hub; expected owner/name, or "
            "owner/name/file.pth for one file of several."
        )
    return HubId(match["repo"], match["file"])


def fetch(hub_id: str, models_dir: Path, *, prefer_safetensors: bool = True) -> Path:
    """Downloads a model into its folder in `models_dir`, with progress, and gives the folder.

    Only weights in one layout, configuration and vocabulary are fetched, never code. A model
    that is there already is not asked for again, so that works without a network. The server
    is the one that the variable HF_ENDPOINT names, else huggingface.co.

    Raises UsageError if `hub_id` is malformed, StorageError where the files cannot be written,
    DownloadError for everything else that can go wrong on the way.
    """
    source = parse_hub_id(hub_id)
    folder = models_dir / source.folder_name
    partial = models_dir / f".{source.folder_name}.partial"
    try:
        if _is_ready(folder, source):
            return folder
        models_dir.mkdir(parents=True, exist_ok=True)
        with locked(folder, lambda: _log.warning("Waiting for another download of %s.", source)):
            if not _is_ready(folder, source):
                _Download(source, partial).run(prefer_safetensors)
                partial.rename(folder)
        return folder
    except RwkvWorldError:
        raise
    # The hub's client raises the errors of its transport, which differ between its releases.
    except Exception as error:
        raise _explained(error, source, models_dir) from error


def choose_files(source: HubId, names: Iterable[str], *, prefer_safetensors: bool) -> list[str]:
    """Which of a repository's files to fetch: small ones, and last the weights or their index.

    Raises DownloadError where the repository has no weights, or several to choose from.
    """
    every = sorted(names)
    top = [name for name in every if is_plain_name(name)]
    extras = [name for name in top if any(fnmatch(name, pattern) for pattern in _EXTRAS)]
    lone = [name for name in every if name.endswith((".pth", ".pt")) and _stays_inside(name)]
    if source.file is not None:
        if source.file not in every:
            raise DownloadError(
                f"{source.repo} has no file {quoted(source.file)}; it has {listed(lone, 12)}."
            )
        return [name for name in extras if not name.endswith(".json")] + [source.file]
    for layout in layouts(prefer_safetensors):
        for name in (layout.single, layout.index):
            if name in top:
                return [*extras, name]
    if len(lone) == 1:
        return [*extras, lone[0]]
    if lone:
        raise DownloadError(
            f"{source.repo} holds several checkpoints: {listed(lone, 40)}. Pick one, as in "
            f"{quoted(f'{source.repo}/{lone[0]}', 200)}."
        )
    raise DownloadError(
        f"{source.repo} holds no weights that can be read (safetensors, .bin or .pth); it has "
        f"{listed(every, 8) or 'no files'}."
    )


def _stays_inside(name: str) -> bool:
    return all(is_plain_name(part) for part in name.split("/"))


def _is_ready(folder: Path, source: HubId) -> bool:
    """Whether `folder` is `source`, complete, or a model that somebody put there by hand."""
    if not folder.exists():
        return False
    if not (folder / _RECORD).exists():
        try:
            find_weights(folder)
        except CheckpointError as error:
            raise DownloadError(
                f"{folder} is in the way: it was not downloaded by this command and is no model "
                f"({error}) Move it elsewhere, or give its path instead of {source}."
            ) from error
        return True
    record = _Record.read(folder)
    if record.source != str(source):
        raise DownloadError(
            f"{folder} holds {quoted(record.source)}, not {source}, and both have the same name. "
            "Move it elsewhere, or give its path."
        )
    if lost := [name for name in record.files if not record.has(folder, name)]:
        raise DownloadError(
            f"{folder} was downloaded, but {listed(lost)} changed or went away since. Remove the "
            "folder to download it again."
        )
    return True


@dataclass
class _Record:
    """What a folder was downloaded from, and the etag and size of every complete file."""

    source: str
    revision: str
    files: dict[str, list[Any]]

    @classmethod
    def read(cls, folder: Path) -> _Record:
        with suppress(CheckpointError):
            match read_json(folder / _RECORD):
                case {"source": str(source), "revision": str(revision), "files": dict(files)} if (
                    all(is_plain_name(name) for name in files)
                ):
                    return cls(source, revision, files)
        raise DownloadError(f"{folder / _RECORD} is damaged; remove {folder} to download it again.")

    def write(self, folder: Path) -> None:
        write_file(folder / _RECORD, json.dumps(asdict(self), indent=2).encode())

    def has(self, folder: Path, name: str, etag: str | None = None) -> bool:
        """Whether `name` is complete, and of `etag` where one is given."""
        known = self.files.get(name)
        path = folder / name
        return (
            known is not None
            and path.is_file()
            and [known[0] if etag is None else etag, path.stat().st_size] == known
        )


class _Download:
    """One model on its way into the folder `partial`."""

    def __init__(self, source: HubId, partial: Path) -> None:
        # Imported here because it takes half a second.
        from huggingface_hub import HfApi

        self._source = source
        self._partial = partial
        info = HfApi(endpoint=_endpoint()).model_info(source.repo, timeout=_TIMEOUT)
        self._names = {sibling.rfilename for sibling in info.siblings or ()}
        self._revision = info.sha or "main"
        self._record = _Record(str(source), self._revision, {})

    def run(self, prefer_safetensors: bool) -> None:
        wanted = choose_files(self._source, self._names, prefer_safetensors=prefer_safetensors)
        if self._partial.is_symlink():
            raise DownloadError(f"{self._partial} is a link, expected a folder: remove it.")
        self._partial.mkdir(exist_ok=True)
        if (self._partial / _RECORD).exists():
            self._record.files = _Record.read(self._partial).files
        # An index comes before the shards that it names, and small files before large ones.
        self._fetch_all(wanted[:-1])
        last = wanted[-1]
        if last.endswith(".index.json"):
            self._fetch_all([last])
            shards = sorted(set(index_owners(self._partial / last).values()))
            if missing := [name for name in shards if name not in self._names]:
                raise DownloadError(
                    f"{self._source} lacks {listed(missing)}, which its {last} names: the "
                    "repository is incomplete."
                )
            wanted += shards
            self._fetch_all(shards)
        else:
            self._fetch_all([last])
        self._drop_others({Path(name).name for name in wanted})
        self._record.write(self._partial)

    def _fetch_all(self, names: list[str]) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        pending = []
        for name in names:
            url = hf_hub_url(self._source.repo, name, revision=self._revision, endpoint=_endpoint())
            metadata = get_hf_file_metadata(url, timeout=_TIMEOUT)
            if metadata.etag is None:
                raise DownloadError(
                    f"{url} was answered without an ETag: that is not a hub. Check HF_ENDPOINT."
                )
            if not self._record.has(self._partial, Path(name).name, metadata.etag):
                pending.append((name, url, metadata))
        self._require_space(sum(metadata.size or 0 for _, _, metadata in pending))
        for name, url, metadata in pending:
            self._fetch(name, url, metadata)

    def _require_space(self, needed: int) -> None:
        needed -= sum(path.stat().st_size for path in self._partial.glob("*.incomplete"))
        free = shutil.disk_usage(self._partial).free
        if needed > free:
            raise StorageError(
                f"{self._source} needs {needed / 1e9:.2f} GB more in {self._partial.parent}, where "
                f"{free / 1e9:.2f} GB are free. Make room and run this again."
            )

    def _fetch(self, name: str, url: str, metadata: HfFileMetadata) -> None:
        from huggingface_hub import get_token
        from huggingface_hub.file_download import http_get

        etag = metadata.etag or ""
        target = self._partial / Path(name).name
        mark = hashlib.sha256(etag.encode()).hexdigest()[:16]
        incomplete = target.with_name(f"{target.name}.{mark}.incomplete")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(incomplete, flags, 0o666), "ab") as file:
            if file.tell() > (metadata.size or 0):
                file.seek(0)
                file.truncate()
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers={"authorization": f"Bearer {token}"} if (token := get_token()) else None,
                expected_size=metadata.size,
                displayed_filename=target.name,
            )
            file.flush()
            os.fsync(file.fileno())
        if not _matches(incomplete, etag):
            incomplete.unlink()
            raise DownloadError(
                f"{url}: the bytes that arrived do not match the hub's checksum {quoted(etag)}; "
                "they were removed. Run this again."
            )
        incomplete.replace(target)
        self._record.files[target.name] = [etag, target.stat().st_size]
        self._record.write(self._partial)

    def _drop_others(self, wanted: set[str]) -> None:
        """Removes what an earlier attempt left and the model does not need."""
        self._record.files = {
            name: known for name, known in self._record.files.items() if name in wanted
        }
        for path in self._partial.iterdir():
            if path.name not in wanted and path.name != _RECORD and not path.is_dir():
                path.unlink()


def _matches(path: Path, etag: str) -> bool:
    """Whether the file is what `etag` promises, where that is a digest: SHA-256 or git's."""
    size = path.stat().st_size
    if re.fullmatch("[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        return True
    large = size > 1 << 28
    with (
        path.open("rb") as file,
        tqdm(desc="Checking", total=size, unit="B", unit_scale=True, disable=not large) as bar,
    ):
        while piece := file.read(1 << 22):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest() == etag


def _explained(error: Exception, source: HubId, models_dir: Path) -> RwkvWorldError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub = _endpoint()
    again = "What has arrived is kept: run this again to go on."
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{source} is gated: accept its terms at {hub}/{source.repo}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"{source.repo} is not at {hub}, or is private: check the name; for a private model "
            "log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, EntryNotFoundError):
        return DownloadError(f"{source}: a file that its list names is not at {hub}.")
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(
            f"{source} is not in {models_dir} and HF_HUB_OFFLINE forbids to fetch it: unset it, or "
            "put the model there."
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            return DownloadError(
                f"{hub} refused {source} ({status}): log in with `hf auth login` or set HF_TOKEN, "
                "and check that your account may read it."
            )
        return DownloadError(f"{hub} answered {status} for {source}. {again}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageError(f"{models_dir}: the disk is full. {again}")
    if isinstance(error, OSError) and error.filename is not None:
        return StorageError(f"{error.filename} cannot be written: {error.strerror}.")
    return DownloadError(
        f"{source} could not be fetched from {hub} ({type(error).__name__}: {quoted(error, 200)}). "
        f"Check the network. {again}"
    )
