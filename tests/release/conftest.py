"""The sdist of this clone, and the wheel that comes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.once import once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sdist(shared: Path) -> Path:
    """The sdist, made without a network by what is installed here."""
    folder = shared / "sdist"

    def make() -> None:
        folder.mkdir()
        hook = "from scikit_build_core import build; print(build.build_sdist({!r}))"
        command = [sys.executable, "-c", hook.format(str(folder))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    once(folder, make)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def own_wheel(sdist: Path, shared: Path) -> Path:
    """The wheel for this Python, made from the sdist without a network."""
    place = shared / "wheel"

    def make() -> None:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (folder,) = place.iterdir()
        command = ["env", "-i", f"PATH={Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"]
        # In a namespace of its own there is no network at all.
        alone = ["unshare", "--net"] if shutil.which("unshare") else []
        if alone and subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
            alone = []
        hook = f"from scikit_build_core import build; build.build_wheel({str(place)!r})"
        done = subprocess.run(
            [*alone, *command, sys.executable, "-c", hook],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    once(place, make)
    (path,) = place.glob("mlc_rwkv_world-*.whl")
    return path
