"""`verify` finds every change of every file, and runs nothing of what it looks at."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_rwkv_world.artifact.checksums import read_checksums, sha256, write_checksums
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime import load
from mlc_rwkv_world.runtime.verify import verify

FLIPS = 500


@pytest.fixture
def artifact(demo_artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the smallest artifact, to be damaged."""
    return Path(shutil.copytree(demo_artifact("q4f16_1"), tmp_path / "demo-q4f16_1"))


def faults(artifact: Path) -> dict[str, str]:
    return {v.path.name: v.fault for v in verify(find(artifact)) if v.fault is not None}


def test_a_sound_artifact(artifact: Path) -> None:
    assert faults(artifact) == {}
    looked_at = {verdict.path for verdict in verify(find(artifact))}
    others = {path for path in artifact.rglob("*") if path.is_file()} - looked_at
    assert {path.name for path in others} == {"SHA256SUMS"}


def test_the_sums_are_those_of_sha256sum(artifact: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=artifact, capture_output=True)
    assert done.returncode == 0, done


def test_every_flipped_bit_is_found(artifact: Path) -> None:
    """In every file of an artifact, the checksums' own included; restored after each."""
    rng = random.Random(8)
    files = [path for path in sorted(artifact.rglob("*")) if path.is_file()]
    small = [path for path in files if path.stat().st_size < 1 << 16]
    assert len(files) >= 6
    sums = read_checksums(artifact)
    assert sums is not None
    for number in range(FLIPS):
        # Large files take a moment to read: most flips are in the small ones.
        path = rng.choice(files if number % 10 == 0 else small)
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        backup = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        if number % 10 == 0 or path.name == "SHA256SUMS":
            assert faults(artifact), (path, bit)
        else:
            assert sha256(path) != sums[path.relative_to(artifact).as_posix()]
        path.unlink()
        path.write_bytes(backup)
    assert faults(artifact) == {}


@pytest.mark.parametrize("name", ["tokenizer_model", "params_shard_0.bin"])
def test_what_is_no_file_is_refused_and_not_waited_for(artifact: Path, name: str) -> None:
    """A pipe in an unpacked archive would block whoever opens it; a device has no end."""
    path = artifact / "params" / name
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in faults(artifact)[name]
    with pytest.raises(ArtifactError, match=f"{name} is not a regular file"):
        load(artifact)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is a link that leaves its folder" in faults(artifact)[name]


@pytest.mark.parametrize("name", ["params/params_shard_0.bin", "params/tokenizer_model"])
def test_a_truncated_or_missing_file(artifact: Path, name: str) -> None:
    path = artifact / name
    data = path.read_bytes()
    for place in (0, 1, len(data) // 2, len(data) - 1):
        path.unlink()
        path.write_bytes(data[:place])
        assert path.name in faults(artifact)
    path.unlink()
    assert "No such file" in faults(artifact)[path.name]


def test_without_checksums_the_index_tells_of_the_shards(artifact: Path) -> None:
    (artifact / "SHA256SUMS").unlink()
    assert faults(artifact) == {}
    path = artifact / "params/params_shard_0.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert faults(artifact) == {"params_shard_0.bin": "does not match its checksum in the index"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "ends inside a line"),
        (b"ab  params/x\n", "line 1"),
        (b"0" * 64 + b"  ../../etc/passwd\n", "line 1"),
        (b"0" * 64 + b"  /etc/passwd\n", "line 1"),
        (b"0" * 64 + b"  a\n" + b"1" * 64 + b"  a\n", "line 2"),
        (b"0" * 64 + b"  a", "ends inside a line"),
        (b"\xff" * 70, "not text"),
        (b"0" * (2 << 20), "larger than"),
    ],
)
def test_damaged_checksums(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(line)
    with pytest.raises(ArtifactError, match=rf"SHA256SUMS is damaged: .*{message}"):
        read_checksums(tmp_path)


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    """A file that an earlier build wrote keeps its checksum: damage since then stays visible."""
    (tmp_path / "m-q0f32-llvm.so").write_bytes(b"damaged since")
    (tmp_path / "mine.txt").write_bytes(b"no part of it")
    write_checksums(tmp_path, ["m-q0f32-llvm.so"], {"m-q0f32-llvm.so": "ab" * 32})
    assert read_checksums(tmp_path) == {"m-q0f32-llvm.so": "ab" * 32}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlc_rwkv_world", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(artifact: Path) -> None:
    done = run(artifact)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+ files, all sound\n$", done.stdout)
    # A library that would end the process if it were loaded.
    (library,) = artifact.glob("*.so")
    library.unlink()
    library.write_bytes(b"\x7fELF and no more")
    done = run(artifact)
    assert done.returncode == 6
    assert f"FAULT  {library}: was changed since it was built" in done.stdout
    assert "1 of" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(artifact / "nowhere").returncode == 3
    (artifact / "SHA256SUMS").unlink()
    assert run(artifact).returncode == 6
