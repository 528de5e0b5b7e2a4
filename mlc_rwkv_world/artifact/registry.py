"""A small record, per user, of the artifacts that were built here.

It makes their names suffice, and it alone does: an artifact is taken by its name only where its
list (`SHA256SUMS`) is one that a build of this user wrote for that folder. Losing the record loses
no more than that, so whatever is wrong with it is treated as an empty record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlc_rwkv_world.artifact.atomic import locked, recover, write_file
from mlc_rwkv_world.artifact.checksums import list_digest
from mlc_rwkv_world.artifact.json_fields import Fields
from mlc_rwkv_world.artifact.layout import SHA256SUMS
from mlc_rwkv_world.artifact.places import expanded, fault_of_name
from mlc_rwkv_world.errors import ArtifactError, UsageError

HOME_VARIABLE = "MLC_RWKV_WORLD_HOME"
REGISTRY = "artifacts.json"
MAX_ENTRIES = 1000
# Of one folder: what stands there, what a build that runs is about to put there, and some before.
_MAX_LISTS = 8


@dataclass(frozen=True)
class Record:
    """The folders where this user built artifacts, the latest first, and the lists of each.

    A list is told by its digest. Folders that older versions recorded have none.
    """

    folders: tuple[Path, ...] = ()
    lists: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Record:
        """The user's record; an empty one where there is none, or it is damaged."""
        place = home()
        if place is None:
            return cls()
        try:
            fields = Fields.read(place / REGISTRY)
            entries = fields.items("artifacts", str, [])
            lists = fields.object("lists", {})
            folders = [Path(entry) for entry in entries if fault_of_name(entry) is None]
            known = {Path(entry): tuple(lists.items(entry, str)) for entry in lists.values}
        except ArtifactError:
            return cls()
        return cls(tuple(folder for folder in folders if folder.is_absolute()), known)

    def holds(self, folder: Path) -> bool:
        """Whether what stands in `folder` is what this user built there."""
        return list_digest(folder) in self.lists.get(_real(folder), ())

    def doubt(self, folder: Path) -> str:
        """Why `holds` does not hold of an artifact, in a few words."""
        if _real(folder) not in self.folders:
            return "was not built here by you"
        if _real(folder) not in self.lists:
            return "was recorded by an older version: build it again"
        if list_digest(folder) is None:
            return f"lost its {SHA256SUMS}"
        return "was changed since you built it"

    def knows(self, folder: Path) -> bool:
        """Whether this user built what stands in `folder`, there or where it was copied from."""
        digest = list_digest(folder)
        return any(digest in known for known in self.lists.values())


def home() -> Path | None:
    """The folder for what is kept per user; None where there is no place for it.

    $MLC_RWKV_WORLD_HOME, or one in $XDG_DATA_HOME. A relative $XDG_DATA_HOME is ignored, as its
    specification asks: the record must not depend on the folder that one stands in.
    """
    try:
        if own := os.environ.get(HOME_VARIABLE):
            return expanded(own)
        data = expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share")
        if not data.is_absolute():
            data = expanded("~/.local/share")
    except UsageError:
        # There is no home directory, or no such user.
        return None
    return data / "mlc-rwkv-world" if data.is_absolute() else None


def registered() -> list[Path]:
    """The absolute folders of the artifacts that still stand, the latest built first."""
    return [folder for folder in Record.read().folders if folder.is_dir()]


def register(artifact: Path, written: Path | None = None) -> bool:
    """Record that an artifact stands in the folder `artifact`; False where that cannot be.

    A build does so just before its work, which lies in `written`, moves there: whenever it is
    killed, what stands there is known. A home that cannot be written is no reason for a build to
    fail, so nothing is raised.
    """
    try:
        folder, place = _real(artifact), home()
        digest = list_digest(written or folder)
        if place is None or digest is None:
            return False
        path = place / REGISTRY
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            recover(path)
            old = Record.read()
            # Folders that are gone are dropped for good here, since an absent disk is rare.
            others = [other for other in old.folders if other != folder and other.is_dir()]
            folders = [folder, *others][:MAX_ENTRIES]
            earlier = [other for other in old.lists.get(folder, ()) if other != digest]
            lists = {**old.lists, folder: (digest, *earlier)[:_MAX_LISTS]}
            content = {
                "version": 1,
                "artifacts": [str(entry) for entry in folders],
                "lists": {str(entry): lists[entry] for entry in folders if entry in lists},
            }
            write_file(path, json.dumps(content, indent=1).encode())
    except Exception:
        # Whatever it was, the build it follows has succeeded.
        return False
    return True


def _real(folder: Path) -> Path:
    # Path.resolve raises where links lead in a circle.
    return Path(os.path.realpath(folder))
