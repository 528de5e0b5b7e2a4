"""Links in content that came from elsewhere."""

from __future__ import annotations

from pathlib import Path

from mlc_rwkv_world.errors import ArtifactError


def require_inside(path: Path) -> None:
    """Raise ArtifactError where `path` is a link that leads out of its folder."""
    if path.resolve().parent != path.parent.resolve():
        raise ArtifactError(f"{path} is a link that leaves its folder: refused.")
