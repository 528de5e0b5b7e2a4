"""Shards and their index, as other readers see them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.convert import shards
from mlc_rwkv_world.convert.shards import ALIGNMENT, ShardWriter

CAP = 1000


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Of every dtype; sizes that need padding, fill a shard to the byte, and exceed one."""
    rng = np.random.default_rng(0)
    return {
        "vector": rng.standard_normal(25).astype(np.float32),  # 100 bytes, 28 of padding
        "scales": rng.standard_normal((4, 109)).astype(np.float16),  # 872: a full shard
        "words": rng.integers(0, 2**32, (3, 5), np.uint32),
        "large": rng.standard_normal((20, 30)).astype(np.float32),  # 2400: its own shard
        "last": rng.standard_normal((7, 1)).astype(np.float32),
        "overflowing": rng.standard_normal(250 - 10).astype(np.float32),  # fits but for padding
    }


@pytest.fixture
def folder(tensors: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "SHARD_CAP", CAP)
    with ShardWriter(tmp_path) as writer:
        for name, values in tensors.items():
            writer.add(name, values)
        writer.finish(4000)
    return tmp_path


def read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "tensor-cache.json").read_text())
    return index


def test_where_shards_end(folder: Path) -> None:
    shards = read_index(folder)["records"]
    assert [[record["name"] for record in shard["records"]] for shard in shards] == [
        ["vector", "scales"],
        ["words"],
        ["large"],
        ["last"],
        ["overflowing"],
    ]
    assert [shard["dataPath"] for shard in shards] == [f"params_shard_{i}.bin" for i in range(5)]
    assert shards[0]["nbytes"] == CAP
    names = {"tensor-cache.json", "ndarray-cache.json", *(s["dataPath"] for s in shards)}
    assert {path.name for path in folder.iterdir()} == names


def test_index_tells_the_truth(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    index = read_index(folder)
    total = sum(values.nbytes for values in tensors.values())
    assert index["metadata"] == {
        "ParamSize": len(tensors),
        "ParamBytes": total,
        "BitsPerParam": 8 * total / 4000,
    }
    for shard in index["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        assert shard["format"] == "raw-shard"
        assert shard["nbytes"] == len(data)
        assert shard["md5sum"] == hashlib.md5(data).hexdigest()
        end = 0
        for record in shard["records"]:
            values = tensors[record["name"]]
            begin = record["byteOffset"]
            assert begin % ALIGNMENT == 0
            assert not any(data[end:begin])
            end = begin + record["nbytes"]
            assert data[begin:end] == values.tobytes()
            assert record["shape"] == list(values.shape)
            assert record["dtype"] == str(values.dtype)
            assert record["format"] == "raw"
        assert end == len(data)


def test_both_index_names_hold_the_same(folder: Path) -> None:
    older = (folder / "ndarray-cache.json").read_bytes()
    assert older == (folder / "tensor-cache.json").read_bytes()


def test_our_reader_finds_no_fault(folder: Path) -> None:
    index = ParameterIndex.read(folder)
    index.check_files()
    assert list(index.damaged_shards()) == []


def test_tvms_reader_gives_the_same_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    device = tvm.cpu()
    load, get, clear = (
        tvm.get_global_func(f"vm.builtin.tensor_cache.{name}") for name in ("load", "get", "clear")
    )
    load(str(folder), device.dlpack_device_type(), device.index)
    try:
        for name, values in tensors.items():
            found = get(name).numpy()
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
    finally:
        clear()


def test_nothing_looks_complete_before_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path) as writer:
        writer.add("one", np.zeros(10, np.float32))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["params_shard_0.bin"]


def test_tensors_that_are_not_contiguous(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with ShardWriter(tmp_path) as writer:
        writer.add("transposed", values)
        writer.finish(12)
    assert (tmp_path / "params_shard_0.bin").read_bytes() == values.tobytes()
