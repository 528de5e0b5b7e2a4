"""Builds that are killed at any moment, and disks that are full or read-only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import CHUNK, NAME, build_tiny, contents
from support.checkpoints import random_world, write_pth
from support.disks import fill, make_read_only, small_disk

from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.builder import Artifact
from mlc_rwkv_world.errors import StorageError
from mlc_rwkv_world.runtime.verify import verify

KILLS = 40

# Imports once, then forks a process for each build, which it kills after a part of the time that
# a whole build takes. Prints what stands in the artifact's place each time.
KILLER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from building import build_tiny, contents
sources, dist, name, kills = sys.argv[2].split("|"), Path(sys.argv[3]), *sys.argv[4:]
kills = int(kills)

def build(source):
    pid = os.fork()
    if pid == 0:
        try:
            build_tiny(Path(source), dist, library=False)
        finally:
            os._exit(0)
    return pid

started = time.monotonic()
os.waitpid(build(sources[0]), 0)
whole = time.monotonic() - started
results = []
for number in range(kills):
    pid = build(sources[1 - number % 2])
    time.sleep(1.1 * whole * number / kills)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    results.append([os.WIFSIGNALED(status), contents(dist / name)])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint of the same name and shape."""
    return write_pth(tmp_path_factory.mktemp("other") / "tiny.pth", random_world(2, 32, seed=10))


def test_killed_anywhere(
    built: Artifact, source: Path, other: Path, dist: Path, older: Path, tmp_path: Path
) -> None:
    """What stands in the artifact's place is the older one or the new one, whole."""
    whole = [contents(older)]
    build_tiny(other, dist, library=False)
    whole.append(contents(older))
    assert whole[0] != whole[1]
    sources = "|".join(map(str, (source, other)))
    rooms = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLER, rooms, sources, dist, NAME, str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == KILLS
    assert sum(killed for killed, _ in results) > KILLS // 2
    for number, (_, standing) in enumerate(results):
        assert standing in whole, f"kill {number} left something else"
    assert [v for v in verify(find(older)) if v.fault is not None] == []
    # What the killed ones left is hidden, and the next build clears it.
    build_tiny(source, dist, library=False)
    assert {path.name for path in dist.iterdir()} == {"cache", NAME}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 48) as place:
        yield place


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_full_disk(source: Path, disk: Path) -> None:
    """Wherever the space ends: one error, the older artifact as it was, and nothing left over."""
    dist = disk / "dist"
    build_tiny(source, dist)
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
            assert {path.name for path in dist.iterdir()} == {"cache", NAME}
            filler.unlink()
    build_tiny(source, dist)
    assert contents(dist / NAME) == before


def command(source: Path, dist: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--hf-path", source, "--target", "llvm", "--artifact-path", dist, *more]
    arguments += ["--prefill-chunk-size", CHUNK, "--convert-weights-only"]
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
