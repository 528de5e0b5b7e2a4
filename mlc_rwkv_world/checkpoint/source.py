"""Finds the checkpoint that a user means: a path, a name, or a model on the hub."""

from __future__ import annotations

from pathlib import Path

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.checkpoint.folder import is_plain_name
from mlc_rwkv_world.checkpoint.hub import fetch
from mlc_rwkv_world.checkpoint.hub_id import is_address
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import NotFoundError, UsageError


def resolve_source(
    source: str,
    models_dir: Path,
    *,
    revision: str | None = None,
    prefer_safetensors: bool = True,
) -> Path:
    """The local path of `source`: a folder, a weight file, or a model on the hub.

    A name or an address of the hub (see `parse_hub_id`) is downloaded into `models_dir` unless it
    is there or in the hub's own cache; a path that exists goes before a name. Raises
    NotFoundError, or DownloadError; UsageError where `source` is empty, or `revision` is given
    with a path.
    """
    if not source.strip():
        raise UsageError(
            "The checkpoint's name is empty; give a folder, a .pth file, or a hub id (owner/name)."
        )
    if not is_address(source):
        path = expanded(source)
        if path.exists():
            if revision is not None:
                raise UsageError(
                    f"{quoted(source)} is a path, and only a model on the hub has a revision "
                    f"({quoted(revision)}). Give one of them."
                )
            return path
        if source.startswith((".", "/", "~")) or "/" not in source:
            raise NotFoundError(
                f"{quoted(source)}: there is no such file or folder, and a model on the hub is "
                "written owner/name."
            )
    return fetch(source, models_dir, revision=revision, prefer_safetensors=prefer_safetensors)


def find_model(name: str, models_dir: Path) -> Path:
    """The checkpoint called `name` in `models_dir`, or at the path `name`.

    Raises NotFoundError, which says where it looked and what is there.
    """
    places = [models_dir / name, models_dir / f"{name}.pth", expanded(name)]
    for place in places:
        if place.exists() and name not in ("", "."):
            return place
    there = sorted(
        path.name
        for path in (models_dir.iterdir() if models_dir.is_dir() else ())
        if is_plain_name(path.name) and not path.name.startswith(".")
    )
    raise NotFoundError(
        f"no checkpoint called {quoted(name)}; looked at {', '.join(map(str, places))}. "
        f"{models_dir} holds {listed(there, 8) or 'no models'}. Download one with --hf-path."
    )
