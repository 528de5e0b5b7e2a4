"""What the hub's own variables say: its server, the token, its cache, whether to use a network."""

from __future__ import annotations

import os
from pathlib import Path

from mlc_rwkv_world.artifact.places import expanded
from mlc_rwkv_world.errors import UsageError

_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


def endpoint() -> str:
    """The server's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE, or transformers' older variable, forbids to use a network."""
    return _is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE")


def shows_no_progress() -> bool:
    """Whether HF_HUB_DISABLE_PROGRESS_BARS is set."""
    return _is_true("HF_HUB_DISABLE_PROGRESS_BARS")


def token() -> str | None:
    """The token in HF_TOKEN or left by `hf auth login`; None where it is not to be used unasked."""
    if _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    # Imported here because it takes half a second.
    from huggingface_hub import get_token

    return get_token()


def cache_folder() -> Path:
    """Where the hub's own tools keep what they downloaded."""
    variables = os.environ
    place = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    if not place:
        caches = variables.get("XDG_CACHE_HOME") or "~/.cache"
        place = (variables.get("HF_HOME") or f"{caches}/huggingface") + "/hub"
    place = os.path.expandvars(place)
    try:
        return expanded(place)
    except UsageError:
        # Without a home there is no cache, and nothing is found there.
        return Path(place)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _TRUE
