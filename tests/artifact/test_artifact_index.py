"""The index of parameters: what it reads, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_rwkv_world.artifact.index import F32_TO_BF16, ParameterIndex
from mlc_rwkv_world.errors import ArtifactError

Change = Callable[[dict[str, Any]], object]


def write_index(folder: Path, name: str = "tensor-cache.json") -> dict[str, Any]:
    """Two shards: a float32 and a uint32 tensor in the first, a bfloat16-stored one alone."""
    first = np.arange(48, dtype=np.float32).tobytes() + np.arange(16, dtype=np.uint32).tobytes()
    second = (np.arange(8, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()

    def shard(file: str, data: bytes, records: list[dict[str, Any]]) -> dict[str, Any]:
        (folder / file).write_bytes(data)
        return {
            "dataPath": file,
            "format": "raw-shard",
            "nbytes": len(data),
            "md5sum": hashlib.md5(data).hexdigest(),
            "records": records,
        }

    def tensor(name: str, shape: list[int], dtype: str, nbytes: int, at: int) -> dict[str, Any]:
        place = {"format": "raw", "nbytes": nbytes, "byteOffset": at}
        return {"name": name, "shape": shape, "dtype": dtype, **place}

    content: dict[str, Any] = {
        "metadata": {"ParamSize": 3},
        "records": [
            shard(
                "params_shard_0.bin",
                first,
                [
                    tensor("a", [6, 8], "float32", 192, 0),
                    tensor("b", [16], "uint32", 64, 192),
                ],
            ),
            shard(
                "params_shard_1.bin",
                second,
                [tensor("c", [8], "float32", 16, 0) | {"format": F32_TO_BF16}],
            ),
        ],
    }
    (folder / name).write_text(json.dumps(content))
    return content


def test_reads_both_writers_formats(tmp_path: Path) -> None:
    write_index(tmp_path)
    index = ParameterIndex.read(tmp_path)
    index.check_files()
    assert list(index.tensors) == ["a", "b", "c"]
    assert index.tensors["b"].shape == (16,)
    assert index.tensors["b"].offset == 192
    assert index.tensors["c"].format == F32_TO_BF16
    assert index.nbytes == 272
    assert list(index.damaged_shards()) == []


def test_the_older_name_is_read_too(tmp_path: Path) -> None:
    write_index(tmp_path, "ndarray-cache.json")
    assert len(ParameterIndex.read(tmp_path).shards) == 2


def test_bfloat16_mark_means_nothing_for_other_types(tmp_path: Path) -> None:
    content = write_index(tmp_path)
    content["records"][0]["records"][1]["format"] = F32_TO_BF16
    (tmp_path / "tensor-cache.json").write_text(json.dumps(content))
    assert ParameterIndex.read(tmp_path).tensors["b"].format == "raw"


def test_identity_follows_the_parameters(tmp_path: Path) -> None:
    content = write_index(tmp_path)
    identity = ParameterIndex.read(tmp_path).identity
    content["metadata"]["ParamSize"] = 4
    (tmp_path / "tensor-cache.json").write_text(json.dumps(content, indent=4))
    assert ParameterIndex.read(tmp_path).identity == identity
    content["records"][1]["md5sum"] = "0" * 32
    (tmp_path / "tensor-cache.json").write_text(json.dumps(content))
    assert ParameterIndex.read(tmp_path).identity != identity


def first_shard(content: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = content["records"][0]
    return shard


def first_tensor(content: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = first_shard(content)["records"][0]
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("records"), "'records' is nothing"),
        (lambda c: c.update(records=[]), "lists no shards"),
        (lambda c: c.update(records=[3]), "a list of dict"),
        (lambda c: first_shard(c).update(dataPath="../x.bin"), "plain name"),
        (lambda c: first_shard(c).update(dataPath="/etc/passwd"), "plain name"),
        (lambda c: first_shard(c).update(dataPath=".hidden"), "plain name"),
        (lambda c: first_shard(c).update(dataPath="params_shard_1.bin"), "'params_shard_1.bin' tw"),
        (lambda c: first_shard(c).update(format="zip"), "raw-shard"),
        (lambda c: first_shard(c).update(md5sum="xyz"), "32 hexadecimal"),
        (lambda c: first_shard(c).update(nbytes=-1), "at least 1"),
        (lambda c: first_shard(c).update(nbytes=200), "at most 136"),
        (lambda c: first_tensor(c).update(name="b"), "'b' twice"),
        (lambda c: first_tensor(c).update(shape=[6, -8]), "positive sizes"),
        (lambda c: first_tensor(c).update(shape=[6, True]), "list of int"),
        (lambda c: first_shard(c).update(dataPath="x" * 256), "plain name"),
        (lambda c: first_shard(c).update(nbytes=10**4000), "not beyond all counting"),
        (lambda c: first_tensor(c).update(shape=[1 << 70]), "none beyond all counting"),
        (lambda c: first_tensor(c).update(shape=[10**4000] * 2), "none beyond all counting"),
        (lambda c: first_tensor(c).update(shape=[1 << 40] * 8), "at most 8 axes"),
        (lambda c: first_tensor(c).update(shape=[2] * 10_000), "at most 8 axes"),
        (lambda c: first_tensor(c).update(byteOffset=10**4000), "not beyond all counting"),
        (lambda c: first_tensor(c).update(dtype="object"), "float32, float16"),
        (lambda c: first_tensor(c).update(format="gzip"), "f32-to-bf16"),
        (lambda c: first_tensor(c).update(nbytes=191), "192, the size of float32 [6, 8]"),
        (lambda c: first_tensor(c).update(byteOffset=65), "to end in params_shard_0.bin"),
        (lambda c: first_tensor(c).update(byteOffset=1.0), "an integer"),
    ],
)
def test_refuses_what_is_wrong(tmp_path: Path, change: Change, message: str) -> None:
    content = write_index(tmp_path)
    change(content)
    (tmp_path / "tensor-cache.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        ParameterIndex.read(tmp_path)
    assert message in str(caught.value)
    assert "tensor-cache.json" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff"]
)
def test_refuses_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "tensor-cache.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"tensor-cache\.json"):
        ParameterIndex.read(tmp_path)


def test_says_that_an_artifact_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no complete artifact"):
        ParameterIndex.read(tmp_path)


def test_cheap_check_finds_missing_short_and_linked_shards(tmp_path: Path) -> None:
    folder = tmp_path / "params"
    folder.mkdir()
    write_index(folder)
    index = ParameterIndex.read(folder)
    shard = folder / "params_shard_0.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="has 255 bytes where the index says 256"):
        index.check_files()
    shard.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        index.check_files()
    (tmp_path / "elsewhere").write_bytes(data)
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="leaves its folder"):
        index.check_files()


def test_full_check_finds_one_flipped_bit(tmp_path: Path) -> None:
    write_index(tmp_path)
    shard = tmp_path / "params_shard_1.bin"
    data = bytearray(shard.read_bytes())
    data[7] ^= 4
    shard.write_bytes(data)
    assert list(ParameterIndex.read(tmp_path).damaged_shards()) == [shard]
