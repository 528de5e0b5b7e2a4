"""Artifacts that tests change, and libraries that tell when they run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.checksums import write_checksums
from mlc_rwkv_world.artifact.search import libraries_in


def list_again(folder: Path) -> None:
    """Write the list of an artifact anew, as whoever gives it away can: every library is in it."""
    write_checksums(folder, [path.name for path in libraries_in(folder)], {})


def telltale(path: Path, mark: Path) -> Path:
    """A library at `path` that makes the file `mark` as soon as it is loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = (
        "#include <fcntl.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void run(void) "
        f'{{ close(open("{mark}", O_CREAT | O_WRONLY, 0600)); }}\n'
    )
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(path), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return path
