"""Keeps lowered modules as JSON, so that building the same library again skips the passes.

They become code, so they lie in the user's own folder, and never beside an artifact or checkpoint,
which may have come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule

from mlc_rwkv_world.artifact.atomic import write_file
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.artifact.registry import home
from mlc_rwkv_world.compiler import ffi
from mlc_rwkv_world.compiler.additions import Additions

# What a module is made by; a change in any of it makes cached modules stale.
_SOURCES = ("compiler", "kernels", "model", "storage", "versions")

# A module takes some megabytes; those not used for longest make room.
_MOST = 64


def cache_folder() -> Path | None:
    """The user's folder for modules; None where there is no home to keep them."""
    place = home()
    return None if place is None else place / "cache"


class ModuleCache:
    """Modules in `folder`, one file each, named by what they were made from."""

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, Any],
        prefix: str | None = None,
        additions: Additions | None = None,
    ) -> None:
        made_from = {
            "metadata": metadata,
            "system_lib_prefix": prefix,
            "tvm": tvm.__version__,
            "revision": REVISION,
            "sources": digest_of_sources(additions),
        }
        text = json.dumps(made_from, sort_keys=True).encode()
        self.path = folder / f"module-{hashlib.sha256(text).hexdigest()[:20]}.json"

    def load(self) -> IRModule | None:
        """The cached module; None where there is none, or it cannot be read."""
        try:
            mod = tvm.ir.load_json(self.path.read_text(encoding="utf-8"))
        except Exception:
            # Damage shows in TVM's reader in many ways, and lowering again cures them all.
            return None
        with suppress(OSError):
            os.utime(self.path)
        return mod if isinstance(mod, IRModule) else None

    def store(self, mod: IRModule) -> None:
        """Keeps the module; a cache that cannot be written is no reason to fail."""
        if not ffi.fits():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, tvm.ir.save_json(mod).encode())
            modules = self.path.parent.glob("module-*.json")
            for old in sorted(modules, key=lambda path: path.stat().st_mtime)[:-_MOST]:
                old.unlink(missing_ok=True)
        except OSError:
            return


def digest_of_sources(additions: Additions | None = None) -> str:
    """The checksum of all code that a lowered module depends on, as hexadecimal digits."""
    package = Path(__file__).parent.parent
    rooms = [package / room for room in _SOURCES]
    return _digest(tuple(rooms if additions is None else [*rooms, additions.code]))


@cache
def _digest(folders: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
