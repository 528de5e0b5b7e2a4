"""Downloads a model from the Hugging Face hub, whole or not at all.

huggingface_hub downloads each file; which ones, whether they are what was declared, and that they
appear together, is said here. Files arrive in a hidden folder beside the model's place and move
there together at the end, so a model that is in its place is complete. A download that was killed
leaves the hidden folder, and the next one fetches what it lacks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

from mlc_rwkv_world.artifact.atomic import locked
from mlc_rwkv_world.artifact.layout import TOKENIZER_MODEL
from mlc_rwkv_world.checkpoint import hub_settings
from mlc_rwkv_world.checkpoint.folder import (
    CONFIG,
    find_weights,
    index_owners,
    is_plain_name,
    layouts,
)
from mlc_rwkv_world.checkpoint.hub_cache import find_cached
from mlc_rwkv_world.checkpoint.hub_client import HubClient, Refused, RemoteFile, Unreachable
from mlc_rwkv_world.checkpoint.hub_id import HubId, parse_hub_id, stays_inside
from mlc_rwkv_world.checkpoint.origin import RECORD, Record
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.console import Bar, complain
from mlc_rwkv_world.errors import (
    CheckpointError,
    DownloadError,
    RwkvWorldError,
    StorageError,
)

# Where the library keeps what is on its way, and what only a killed process of it leaves there.
_ON_THE_WAY = ".cache"
_ORPHAN = re.compile(r".*\.[0-9a-f]{8}\.incomplete")

_EXTRAS = (CONFIG, "generation_config.json", TOKENIZER_MODEL, "rwkv_vocab_v*.txt")


def fetch(
    hub_id: str,
    models_dir: Path,
    *,
    revision: str | None = None,
    prefer_safetensors: bool = True,
) -> Path:
    """Gives the folder or file of a model of the hub, which is downloaded unless it is there.

    It is there where it was downloaded before, into its folder in `models_dir`, and where the
    hub's own tools have it in their cache. Neither asks the network. A download shows its
    progress, and takes only weights in one layout, configuration and vocabulary, never code, from
    the server that the variable HF_ENDPOINT names, else huggingface.co. `hub_id` and `revision`
    are as in `parse_hub_id`.

    Raises UsageError if they are malformed, StorageError where the files cannot be written,
    DownloadError for everything else that can go wrong on the way.
    """
    source = parse_hub_id(hub_id, revision)
    folder = models_dir / source.folder_name
    partial = models_dir / f".{source.folder_name}.partial"
    try:
        if _is_ready(folder, source):
            return folder
        cached = find_cached(source, prefer_safetensors=prefer_safetensors)
        if cached is not None:
            return cached
        if hub_settings.is_offline():
            raise DownloadError(
                f"{source} is not in {models_dir} nor, whole, in {hub_settings.cache_folder()}, "
                "and HF_HUB_OFFLINE forbids to fetch it: unset it, or put the model there."
            )
        models_dir.mkdir(parents=True, exist_ok=True)
        waiting = f"Waiting for another download of {source}."
        with locked(folder, lambda: complain(waiting)):
            if not _is_ready(folder, source):
                _Download(source, partial).run(prefer_safetensors)
                partial.rename(folder)
        return folder
    except RwkvWorldError:
        raise
    except (Refused, Unreachable, OSError) as error:
        raise _explained(error, source, models_dir) from error


def choose_files(source: HubId, names: Iterable[str], *, prefer_safetensors: bool) -> list[str]:
    """Which of a repository's files to fetch: small ones, and last the weights or their index.

    Raises DownloadError where the repository has no weights, or several to choose from.
    """
    every = sorted(names)
    top = [name for name in every if is_plain_name(name)]
    extras = [name for name in top if any(fnmatch(name, pattern) for pattern in _EXTRAS)]
    lone = [name for name in every if name.endswith((".pth", ".pt")) and stays_inside(name)]
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


def _is_ready(folder: Path, source: HubId) -> bool:
    """Whether `folder` is `source`, complete, or a model that somebody put there by hand."""
    if not folder.exists():
        return False
    if not (folder / RECORD).exists():
        try:
            find_weights(folder)
        except CheckpointError as error:
            raise DownloadError(
                f"{folder} is in the way: it was not downloaded by this command and is no model "
                f"({error}) Move it elsewhere, or give its path instead of {source}."
            ) from error
        return True
    record = _record(folder)
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


def _record(folder: Path) -> Record:
    record = Record.read(folder)
    if record is None:
        raise DownloadError(f"{folder / RECORD} is damaged; remove {folder} to download it again.")
    return record


class _Download:
    """One model on its way into the folder `partial`."""

    def __init__(self, source: HubId, partial: Path) -> None:
        self._source = source
        self._partial = partial
        self._hub = HubClient()
        self._revision, names = self._hub.files(source)
        self._names = set(names)
        self._record = Record(str(source), self._revision, {})

    def run(self, prefer_safetensors: bool) -> None:
        wanted = choose_files(self._source, self._names, prefer_safetensors=prefer_safetensors)
        for place in (self._partial, self._partial / _ON_THE_WAY):
            if place.is_symlink():
                raise DownloadError(f"{place} is a link, expected a folder: remove it.")
        self._partial.mkdir(exist_ok=True)
        for path in (self._partial / _ON_THE_WAY).rglob("*.incomplete"):
            if _ORPHAN.fullmatch(path.name):
                path.unlink()
        if (self._partial / RECORD).exists():
            self._record.files = _record(self._partial).files
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
        pending = []
        for name in names:
            remote = self._hub.describe(self._source, self._revision, name)
            if not self._record.has(self._partial, Path(name).name, remote.etag):
                pending.append(remote)
        self._require_space(sum(remote.size for remote in pending))
        for remote in pending:
            self._fetch(remote)

    def _require_space(self, needed: int) -> None:
        needed -= sum(path.stat().st_size for path in self._partial.rglob("*.incomplete"))
        free = shutil.disk_usage(self._partial).free
        if needed > free:
            raise StorageError(
                f"{self._source} needs {needed / 1e9:.2f} GB more in {self._partial.parent}, where "
                f"{free / 1e9:.2f} GB are free. Make room and run this again."
            )

    def _fetch(self, remote: RemoteFile) -> None:
        target = self._partial / Path(remote.name).name
        path = self._hub.download(self._source, self._revision, remote, self._partial)
        if path.stat().st_size != remote.size or not _matches(path, remote.etag):
            path.unlink()
            raise DownloadError(
                f"{remote.url}: the bytes that arrived do not match the hub's checksum "
                f"{quoted(remote.etag)}; they were removed. Run this again."
            )
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(target)
        self._record.files[target.name] = [remote.etag, remote.size]
        self._record.write(self._partial)

    def _drop_others(self, wanted: set[str]) -> None:
        """Removes what an earlier attempt or the library left and the model does not need."""
        self._record.files = {
            name: known for name, known in self._record.files.items() if name in wanted
        }
        for path in self._partial.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in wanted and path.name != RECORD:
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
    with path.open("rb") as file, closing(Bar("B", "Checking")) as bar:
        while piece := file.read(1 << 22):
            digest.update(piece)
            bar.show(file.tell(), size)
    return digest.hexdigest() == etag


def _explained(
    error: Refused | Unreachable | OSError, source: HubId, models_dir: Path
) -> RwkvWorldError:
    hub = hub_settings.endpoint()
    again = "The files that arrived are kept: run this again to go on."
    if isinstance(error, Refused):
        answered = f"{hub} answered {error.status} for {source}. {again}"
        return DownloadError(_refusal(error, source, hub) or answered)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageError(f"{models_dir}: the disk is full. {again}")
    if isinstance(error, OSError) and error.filename is not None:
        return StorageError(f"{error.filename} cannot be written: {error.strerror}.")
    return DownloadError(
        f"{source} could not be fetched from {hub} ({quoted(error, 200)}). Check the network. "
        f"{again}"
    )


def _refusal(error: Refused, source: HubId, hub: str) -> str | None:
    """What the hub means by a status and its code, and what can be done about it."""
    if error.code == "GatedRepo":
        return (
            f"{source} is gated: accept its terms at {hub}/{source.repo}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if error.code == "RevisionNotFound":
        return f"{source.repo} has no revision {quoted(source.revision)} at {hub}: check the name."
    if error.code == "EntryNotFound":
        return f"{source}: a file that its list names is not at {hub}."
    if error.code == "RepoNotFound" or error.status == 404:
        return (
            f"{source.repo} is not at {hub}, or is private: check the name; for a private model "
            "log in with `hf auth login` or set HF_TOKEN."
        )
    if error.status in (401, 403):
        return (
            f"{hub} refused {source} ({error.status}): log in with `hf auth login` or set "
            "HF_TOKEN, and check that your account may read it."
        )
    return None
