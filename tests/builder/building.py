"""Checkpoints and folders for tests of whole builds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mlc_rwkv_world import Artifact, build

NAME = "tiny-q4f16_1"
CHUNK = 16
# The same for the command.
OPTIONS = ["--target", "llvm", "--prefill-chunk-size", str(CHUNK), "--no-stock"]


def build_tiny(source: Path, output: Path, **options: Any) -> Artifact:
    """Builds for this CPU, with a small chunk and without stock's functions."""
    usual: dict[str, Any] = {
        "target": "llvm",
        "output": output,
        "prefill_chunk_size": CHUNK,
        "stock": False,
    }
    return build(source, **usual | options)


def contents(folder: Path) -> dict[str, str]:
    """A checksum of every file in a folder, by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
