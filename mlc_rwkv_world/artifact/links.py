"""Links, and what is no file at all, in content that came from elsewhere."""

from __future__ import annotations

from pathlib import Path

from mlc_rwkv_world.errors import ArtifactError


def require_inside(path: Path) -> None:
    """Raise ArtifactError where `path` is a link that leads out of its folder, or no regular file.

    What does not exist passes.
    """
    if path.resolve().parent != path.parent.resolve():
        raise ArtifactError(f"{path} is a link that leaves its folder: refused.")
    if path.exists() and not path.is_file():
        # A pipe or a device would block or never end.
        raise ArtifactError(f"{path} is not a regular file. Build or copy the artifact again.")
