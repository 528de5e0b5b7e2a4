"""Finds the checkpoint that a user means: a path, a name, or a model on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.checkpoint.folder import is_plain_name
from mlc_rwkv_world.checkpoint.hub import fetch
from mlc_rwkv_world.checkpoint.wording import listed, quoted
from mlc_rwkv_world.errors import NotFoundError, UsageError

_HUB_PREFIX = re.compile(r"hf://|https://huggingface\.co/", re.IGNORECASE)
_PAGE_OF_FILE = re.compile(r"^([^/]+/[^/]+)/(?:blob|resolve)/main/")


def resolve_source(source: str, models_dir: Path, *, prefer_safetensors: bool = True) -> Path:
    """The local path of `source`: a folder, a weight file, or a model on the hub.

    `owner/name` and `owner/name/file.pth` are downloaded into `models_dir` unless they are
    there; so are these with `hf://` or `https://huggingface.co/` before them. Raises
    NotFoundError, or DownloadError; UsageError where `source` is empty.
    """
    if not source.strip():
        raise UsageError(
            "The checkpoint's name is empty; give a folder, a .pth file, or a hub id (owner/name)."
        )
    if match := _HUB_PREFIX.match(source):
        hub_id = _PAGE_OF_FILE.sub(r"\1/", source[match.end() :].rstrip("/"))
        return fetch(hub_id, models_dir, prefer_safetensors=prefer_safetensors)
    path = expanded(source)
    if path.exists():
        return path
    if source.startswith((".", "/", "~")) or "/" not in source:
        raise NotFoundError(
            f"{quoted(source)}: there is no such file or folder, and a model on the hub is "
            "written owner/name."
        )
    return fetch(source, models_dir, prefer_safetensors=prefer_safetensors)


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
