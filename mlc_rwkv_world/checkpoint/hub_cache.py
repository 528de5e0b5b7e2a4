"""Models that the hub's own tools downloaded before, used from where they keep them.

Below its folder the cache has, for each repository, `refs` from branches to commits, and for each
commit a snapshot whose files are links to blobs. Nothing is ever written there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mlc_rwkv_world.checkpoint import hub_settings
from mlc_rwkv_world.checkpoint.folder import find_weights, inside
from mlc_rwkv_world.checkpoint.hub_id import MAIN, HubId, is_commit
from mlc_rwkv_world.errors import CheckpointError


def find_cached(source: HubId, *, prefer_safetensors: bool = True) -> Path | None:
    """The snapshot of `source`, or its one file in it; None where it is not there whole.

    A branch is what it was when the cache last saw it.
    """
    repo = hub_settings.cache_folder() / f"models--{source.repo.replace('/', '--')}"
    commit = _commit(repo, source.revision or MAIN)
    if commit is None:
        return None
    snapshot = repo / "snapshots" / commit
    with suppress(OSError, CheckpointError):
        if source.file is not None:
            path = inside(snapshot / source.file)
            return path if path.is_file() else None
        find_weights(snapshot, prefer_safetensors=prefer_safetensors)
        return snapshot
    return None


def snapshots() -> list[Path]:
    """The snapshots that the cache's main branches stand at, of models of every kind."""
    repos = sorted(hub_settings.cache_folder().glob("models--*"))
    found = [(repo, commit) for repo in repos if (commit := _commit(repo, MAIN)) is not None]
    places = [repo / "snapshots" / commit for repo, commit in found]
    return [place for place in places if place.is_dir()]


def name_in_cache(repo: Path, snapshot: Path) -> str:
    """What to call the model of `repo`: its name, and its commit where that is not the main one."""
    name = repo.name.split("--")[-1]
    commit = snapshot.name
    return name if commit == _commit(repo, MAIN) else f"{name}@{commit[:12]}"


def _commit(repo: Path, revision: str) -> str | None:
    if is_commit(revision):
        return revision
    path = repo / "refs" / revision
    # A pipe or a device would block or never end.
    if not path.is_file():
        return None
    with suppress(OSError), path.open("rb") as file:
        commit = file.read(64).decode("ascii", errors="replace").strip()
        return commit if is_commit(commit) else None
    return None
