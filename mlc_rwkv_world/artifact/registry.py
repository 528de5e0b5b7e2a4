"""A small record, per user, of where artifacts were built, so that their names suffice.

The file only helps to find; losing it loses nothing, so whatever is wrong with it is
treated as an empty record, and entries whose folder is gone are ignored.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mlc_rwkv_world.artifact.atomic import locked, recover, write_file
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, PARAMS_DIR
from mlc_rwkv_world.errors import ArtifactError

HOME_VARIABLE = "MLC_RWKV_WORLD_HOME"
REGISTRY = "artifacts.json"
MAX_ENTRIES = 1000


def home() -> Path:
    """The folder for what is kept per user: $MLC_RWKV_WORLD_HOME, or one in $XDG_DATA_HOME."""
    if own := os.environ.get(HOME_VARIABLE):
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "mlc-rwkv-world"


def registered() -> list[Path]:
    """The absolute folders of the artifacts that still stand, the latest built first."""
    return [folder for folder in _read() if (folder / PARAMS_DIR / CHAT_CONFIG).is_file()]


def register(artifact: Path) -> bool:
    """Record that an artifact stands in the folder `artifact`; False where that cannot be.

    A home that cannot be written is no reason for a build to fail, so nothing is raised.
    """
    folder = artifact.resolve()
    path = home() / REGISTRY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            recover(path)
            # Folders that are gone are dropped for good here, since an absent disk is rare.
            others = [other for other in registered() if other != folder]
            entries = [str(entry) for entry in [folder, *others][:MAX_ENTRIES]]
            content = json.dumps({"version": 1, "artifacts": entries}, indent=1)
            write_file(path, content.encode())
    except OSError:
        return False
    return True


def _read() -> list[Path]:
    try:
        entries = Fields.read(home() / REGISTRY).items("artifacts", str, [])
    except ArtifactError:
        return []
    return [path for entry in entries if "\0" not in entry and (path := Path(entry)).is_absolute()]
