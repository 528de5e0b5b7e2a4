"""Links, and what is no file at all, in content that came from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from mlc_rwkv_world.errors import ArtifactError


def require_inside(path: Path) -> None:
    """Raise ArtifactError where `path` is a link that leads out of its folder, or no regular file.

    What does not exist passes.
    """
    # Path.resolve raises where links lead in a circle.
    if Path(os.path.realpath(path)).parent != Path(os.path.realpath(path.parent)):
        raise ArtifactError(
            f"{path} is a link that leaves its folder: refused. Put the file itself there."
        )
    require_file(path)


def require_file(path: Path) -> None:
    """Raise ArtifactError where `path` is there and no regular file.

    A pipe or a device would block or never end.
    """
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is not a regular file. Build or copy the artifact again.")
