"""The metadata of a compiled library."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlc_rwkv_world.artifact.metadata import REVISION, LibraryMetadata
from mlc_rwkv_world.errors import ArtifactError


def content() -> dict[str, Any]:
    return {
        "model_type": "rwkv_world",
        "quantization": "q0f32",
        "params": [
            {"name": "a", "shape": [4, 2], "dtype": "float32", "preprocs": []},
            {"name": "b", "shape": [4], "dtype": "float32", "preprocs": []},
        ],
        "prefill_chunk_size": 64,
        "max_batch_size": 8,
        "rwkv_world": {
            "revision": REVISION,
            "target": "llvm -mcpu=x",
            "compute_dtype": "float32",
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "vocab_size": 65536,
            "packed_params": [
                {"name": "p", "shape": [8], "dtype": "float32", "from": ["a"], "pack": "pack_a"}
            ],
        },
    }


def parse(value: dict[str, Any]) -> LibraryMetadata:
    return LibraryMetadata.parse(json.dumps(value), "lib.so")


def test_reads_what_the_compiler_writes() -> None:
    metadata = parse(content())
    assert [parameter.name for parameter in metadata.parameters] == ["a", "b"]
    assert metadata.packed is not None
    assert metadata.packed[0].sources == ("a",)
    assert metadata.initial_rows == (0.0, 0.0, 0.0, -1e30, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model of type 'llama'"),
        (lambda c: c.pop("rwkv_world"), "not by mlc-rwkv-world"),
        (lambda c: c["params"][0].update(dtype="void"), "float32, float16"),
        (lambda c: c["rwkv_world"].update(num_hidden_layers=0), "at least 1"),
        (lambda c: c["rwkv_world"].update(hidden_size=10**12), "the width of a model"),
        (lambda c: c["rwkv_world"].update(num_hidden_layers=10**9), "the width of a model"),
        (lambda c: c["rwkv_world"].update(vocab_size=10**12), "at most 16777216"),
        (lambda c: c["rwkv_world"]["packed_params"][0].update({"from": ["z"]}), "parameters"),
        (lambda c: c["rwkv_world"]["packed_params"][0].update({"from": []}), "parameters"),
        (
            lambda c: c["rwkv_world"]["packed_params"][0].update({"from": ["a", "b"], "pack": ""}),
            "'pack' is \"\" instead of the function that makes one tensor of several",
        ),
    ],
)
def test_refuses_what_is_wrong(change: Callable[[dict[str, Any]], object], message: str) -> None:
    value = content()
    change(value)
    with pytest.raises(ArtifactError) as caught:
        parse(value)
    assert message in str(caught.value)
    assert "lib.so" in str(caught.value)
