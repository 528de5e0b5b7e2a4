"""Files cut anywhere, and files with flipped bits, of every kind.

Each gives a named error, or tensors that are what the bytes say; never a crash, a hang
or a large allocation.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    Tensors,
    as_raw,
    canonical_name,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)

from mlc_rwkv_world.checkpoint import open_checkpoint
from mlc_rwkv_world.errors import CheckpointError

TRUNCATIONS = 200
FLIPS = 500

# The files have 2 MB at most, their tensors 1 MB.
MEMORY = 128 << 20
SECONDS = 5.0


@contextmanager
def bounded_time() -> Iterator[None]:
    """Fails where the block takes more than SECONDS."""

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Makes allocations fail that together exceed MEMORY, where the system can."""
    if sys.platform != "linux":
        yield
        return
    # What other tests left would make room.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_all(path: Path) -> Tensors | None:
    """Every tensor of the checkpoint at `path`, or None where it is refused."""
    with bounded_time():
        try:
            checkpoint = open_checkpoint(path)
            return {name: checkpoint.read(name) for name in checkpoint.names()}
        except CheckpointError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 1000
            return None


def pth(folder: Path, world: Tensors) -> Path:
    return write_pth(folder / "w.pth", world, "float16")


def pth_without_checksums(folder: Path, world: Tensors) -> Path:
    torch.serialization.set_crc32_options(False)
    try:
        return write_pth(folder / "w.pth", world, "bfloat16")
    finally:
        torch.serialization.set_crc32_options(True)


def state_dict(folder: Path, world: Tensors) -> Path:
    write_hf_bin(folder, world)
    return folder / "pytorch_model.bin"


def safetensors(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder, world, "float16")
    return folder / "model.safetensors"


def shard(folder: Path, world: Tensors) -> Path:
    write_hf_bin(folder, world, "float16", shards=2)
    return folder / "pytorch_model-00001-of-00002.bin"


def index(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder, world, "float16", shards=2)
    return folder / "model.safetensors.index.json"


def config(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder, world, "float16")
    return folder / "config.json"


WEIGHTS = [pth, pth_without_checksums, state_dict, safetensors, shard]
Maker = Callable[[Path, Tensors], Path]


def opened_as(path: Path) -> Path:
    """What a user opens to read the file at `path`."""
    return path if path.name in ("w.pth", "model.safetensors") else path.parent


class Oracle:
    """What a weight file says, by the place of each tensor's bytes in it, or else by torch."""

    def __init__(self, path: Path, whole: Tensors, world: Tensors) -> None:
        self.path = path
        self.whole = whole
        data = path.read_bytes()
        self.places = {}
        for dtype in ("float32", "float16", "bfloat16"):
            for name, array in as_raw(world, dtype).items():
                if (place := data.find(array.tobytes())) >= 0:
                    self.places[canonical_name(name)] = (place, dtype)

    def agrees(self, tensors: Tensors) -> bool:
        data = self.path.read_bytes()
        return all(
            self.bytes_say(data, name, array) or self.torch_says(name, array)
            for name, array in tensors.items()
        )

    def bytes_say(self, data: bytes, name: str, array: np.ndarray) -> bool:
        if name not in self.places:  # it is in the other shard
            return np.array_equal(array, self.whole[name])
        place, dtype = self.places[name]
        word = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[dtype]
        words = np.frombuffer(data, word, array.size, place)
        if dtype == "bfloat16":
            words = (words.astype(np.uint32) << 16).view(np.float32)
        return np.array_equal(array.ravel(), words.astype(np.float32))

    def torch_says(self, name: str, array: np.ndarray) -> bool:
        load = load_file if self.path.suffix == ".safetensors" else torch.load
        loaded = {canonical_name(n): tensor for n, tensor in load(self.path).items()}
        return np.array_equal(array.ravel(), loaded[name].float().numpy().ravel())


@pytest.mark.slow
@pytest.mark.parametrize("make", [*WEIGHTS, index, config])
def test_cut_anywhere(tmp_path: Path, world: Tensors, make: Maker) -> None:
    path = make(tmp_path, world)
    data = path.read_bytes()
    whole = read_all(opened_as(path))
    assert whole is not None
    places = set(np.linspace(0, len(data) - 1, TRUNCATIONS - 60, dtype=int).tolist())
    places |= set(range(min(30, len(data)))) | {len(data) - n for n in range(1, 31)}
    survivors = 0
    for place in sorted(places):
        path.write_bytes(data[:place])
        if (tensors := read_all(opened_as(path))) is not None:
            survivors += 1
            for name, array in whole.items():
                np.testing.assert_array_equal(tensors[name], array)
    # Only white space after a JSON text may be missing.
    assert survivors <= len(data) - len(data.rstrip())


def flip_places(data: bytes, count: int) -> Iterator[int]:
    """Bit numbers: half of them anywhere, half in the bytes that are not weights."""
    rng = random.Random(len(data))
    edges = 6000
    for number in range(count):
        if number % 2 or len(data) < 2 * edges:
            place = rng.randrange(len(data))
        else:
            place = rng.choice((rng.randrange(edges), len(data) - 1 - rng.randrange(2 * edges)))
        yield 8 * place + rng.randrange(8)


@pytest.mark.slow
@pytest.mark.parametrize("make", WEIGHTS)
def test_flipped_bits_in_weight_files(tmp_path: Path, world: Tensors, make: Maker) -> None:
    path = make(tmp_path, world)
    data = path.read_bytes()
    whole = read_all(opened_as(path))
    assert whole is not None
    oracle = Oracle(path, whole, world)
    assert len(oracle.places) > 10
    refused = 0
    for bit in flip_places(data, FLIPS):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        tensors = read_all(opened_as(path))
        if tensors is None:
            refused += 1
            continue
        assert oracle.agrees(tensors), f"bit {bit}"
    # Checksums find flipped weights; without them only the flips of structure are found.
    has_checksums = make in (pth, state_dict, shard)
    assert refused > (0.7 if has_checksums else 0.1) * FLIPS


@pytest.mark.slow
@pytest.mark.parametrize("make", [index, config])
def test_flipped_bits_in_json(tmp_path: Path, world: Tensors, make: Maker) -> None:
    path = make(tmp_path, world)
    data = path.read_bytes()
    whole = read_all(path.parent)
    assert whole is not None
    refused = 0
    for bit in flip_places(data, FLIPS):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        tensors = read_all(path.parent)
        refused += tensors is None
        for name, array in (tensors or {}).items():
            np.testing.assert_array_equal(array, whole[name])
    assert refused > 0.1 * FLIPS


@pytest.mark.slow
def test_garbage_with_the_right_beginning(tmp_path: Path, world: Tensors) -> None:
    rng = random.Random(1)
    end = pth(tmp_path, world).read_bytes()[-2000:]
    shutil.rmtree(tmp_path / "w.pth", ignore_errors=True)
    for size in [*range(1, 60), *(rng.randrange(60, 5000) for _ in range(140))]:
        noise = rng.randbytes(size)
        for begin, tail in (
            (b"PK\3\4", b""),
            (b"PK\3\4", b"PK\5\6" + rng.randbytes(18)),
            (b"PK\3\4", end),
            (b"PK\3\4", end[rng.randrange(1990) :]),
            (size.to_bytes(8, "little") + b"{", b""),
            (size.to_bytes(8, "little") + b'{"a":', b"}"),
            (b"\x80\2", b"."),
        ):
            (tmp_path / "w.pth").write_bytes(begin + noise + tail)
            assert read_all(tmp_path / "w.pth") is None


def test_the_bounds_above_are_real() -> None:
    with pytest.raises(TimeoutError), bounded_time():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(10)
    if sys.platform == "linux":
        # Not from the heap, which may have as much left over from other tests.
        with pytest.raises(OSError, match="annot allocate"):
            mmap.mmap(-1, 2 * MEMORY)
