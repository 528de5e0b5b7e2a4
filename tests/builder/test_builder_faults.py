"""Builds that are killed at any moment, and disks that are full or read-only."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import NAME, OPTIONS, build_tiny, contents
from support import patience
from support.checkpoints import random_world, write_pth
from support.disks import fill, make_read_only, small_disk

from mlc_rwkv_world import Artifact
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import StorageError
from mlc_rwkv_world.runtime.verify import verify

pytestmark = pytest.mark.slow

# Kills of builds that compile nothing, and of those that compile: a second each, and several.
KILLS = {"weights": 40, "library": 4}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint of the same name and shape."""
    return write_pth(tmp_path_factory.mktemp("other") / "tiny.pth", random_world(2, 32, seed=10))


@pytest.mark.parametrize("part", list(KILLS))
def test_killed_anywhere(
    part: str, built: Artifact, source: Path, other: Path, dist: Path, older: Path
) -> None:
    """What stands in the artifact's place is the older one or the new one, whole."""
    whole = [contents(older)]
    build_tiny(other, dist, library=False)
    whole.append(contents(older))
    assert whole[0] != whole[1]
    script = Path(__file__).with_name("killing.py")
    arguments = [source, other, dist, KILLS[part], part]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == KILLS[part]
    assert sum(killed for killed, _, _ in results) > KILLS[part] // 2
    for number, (_, stage, standing) in enumerate(results):
        assert standing in whole, f"kill {number} while {stage} left something else"
    assert [v for v in verify(find(older)) if v.fault is not None] == []
    # What the killed ones left is hidden, and the next build clears it.
    build_tiny(source, dist, library=False)
    assert {path.name for path in dist.iterdir()} == {NAME}


# Says that it runs, waits until it may go on, and then links after all.
SLOW_LINKER = """#!/bin/sh
echo "$@" > {folder}/linking
while [ ! -e {folder}/go ]; do sleep 0.02; done
"{linker}" "$@"
echo $? > {folder}/linked
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + patience.SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_a_linker_that_survives_its_build(
    source: Path, dist: Path, older: Path, tmp_path: Path
) -> None:
    """It goes on writing where the killed build had put it, which is no finished folder."""
    linker = shutil.which("g++") or shutil.which("c++")
    if linker is None:
        pytest.skip("there is no g++")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("g++", "c++", "clang++", "gcc", "cc", "clang"):
        (tools / name).write_text(SLOW_LINKER.format(folder=tmp_path, linker=linker))
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    before = contents(older)
    arguments = ["--hf-path", source, "--artifact-path", dist, *OPTIONS, "--build-model-only"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc_rwkv_world", "build", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(tmp_path / "linking")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert contents(older) == before
    # The objects lie in the killed build's own folder, and so does what the linker writes.
    said = (tmp_path / "linking").read_text().split()
    written = Path(said[said.index("-o") + 1])
    assert written.parent.parent == dist
    assert re.fullmatch(rf"\.{NAME}\.[0-9a-f]+\.tmp", written.parent.name)
    objects = [Path(word).parent.parent for word in said if word.endswith(".o")]
    assert objects and set(objects) == {written.parent}
    (tmp_path / "go").touch()
    wait_for(tmp_path / "linked")
    assert contents(older) == before
    build_tiny(source, dist, library=False)
    assert contents(older) == before
    assert {path.name for path in dist.iterdir()} == {NAME}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 48) as place:
        yield place


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_full_disk(built: Artifact, source: Path, disk: Path) -> None:
    """Wherever the space ends: one error, the older artifact as it was, and nothing left over."""
    dist = disk / "dist"
    shutil.copytree(built.folder.parent, dist)
    before = contents(dist / NAME)
    weights, whole = size_of(dist / NAME / "params"), size_of(dist / NAME)
    cases = [
        ({"library": False}, weights, (0, 20, 50, 80)),
        ({"weights": False}, whole, (0,)),
        ({}, whole, (50,)),
    ]
    for options, size, parts in cases:
        for part in parts:
            filler = fill(disk, size * part // 100)
            with pytest.raises(StorageError, match=r"the disk is full\. Make room"):
                build_tiny(source, dist, **options)
            assert contents(dist / NAME) == before
            assert {path.name for path in dist.iterdir()} == {NAME}
            filler.unlink()
    build_tiny(source, dist, library=False)
    assert contents(dist / NAME) == before


def command(source: Path, dist: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--hf-path", source, "--artifact-path", dist, *OPTIONS, *more]
    arguments += ["--convert-weights-only"]
    return subprocess.run(
        [sys.executable, "-m", "mlc_rwkv_world", "build", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_command_has_a_status_for_storage(source: Path, disk: Path) -> None:
    fill(disk, 100_000)
    done = command(source, disk / "dist")
    assert done.returncode == StorageError.exit_status, done.stderr
    assert "the disk is full. Make room or give another folder" in done.stderr
    assert "Traceback" not in done.stderr
    make_read_only(disk)
    done = command(source, disk / "dist")
    assert done.returncode == StorageError.exit_status, done.stderr
    assert "cannot be written: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
