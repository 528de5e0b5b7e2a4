"""Which type a build computes in, block by block, and where that is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from building import build_tiny

from mlc_rwkv_world import Artifact
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG
from mlc_rwkv_world.errors import ArtifactError, UsageError
from mlc_rwkv_world.runtime import load


def model_config(artifact: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifact.params / CHAT_CONFIG).read_text())
    return dict(content["model_config"])


@pytest.mark.slow
def test_new_library_records_its_choice(source: Path, older: Path) -> None:
    """In its metadata and in the configuration, of which only that changes."""
    path = older / "params" / CHAT_CONFIG
    edited = json.loads(path.read_text()) | {"temperature": 0.7}
    path.write_text(json.dumps(edited))
    artifact = build_tiny(
        source, older.parent, weights=False, compute_dtype="float16", fp32_layers="1"
    )
    assert artifact.compute_dtype == "float16"
    assert artifact.fp32_layers == (1,)
    metadata = load(artifact.folder).metadata
    assert (metadata.compute_dtype, metadata.fp32_layers) == ("float16", (1,))
    edited["model_config"]["fp32_layers"] = [1]
    assert json.loads(path.read_text()) == edited
    with pytest.raises(ArtifactError, match="built for other compute_dtype"):
        build_tiny(source, older.parent, reuse_lib=artifact.libraries[0])
    with pytest.raises(ArtifactError, match="built for other fp32_layers"):
        options = {"compute_dtype": "float16", "fp32_layers": "0"}
        build_tiny(source, older.parent, reuse_lib=artifact.libraries[0], **options)
    # The same choice and weights again: the library that is there will do.
    again = build_tiny(
        source,
        older.parent,
        reuse_lib=artifact.libraries[0],
        compute_dtype="float16",
        fp32_layers="1",
    )
    assert model_config(again)["fp32_layers"] == [1]


def test_default(built: Artifact) -> None:
    assert built.compute_dtype == "float32"
    assert built.fp32_layers == ()
    assert model_config(built)["fp32_layers"] == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compute_dtype": "bfloat16"}, "give auto, float16 or float32"),
        ({"compute_dtype": "float16", "quantization": "q4f32_1"}, "choose q4f16_1"),
        ({"fp32_layers": "first"}, "'first' is no block"),
        ({"fp32_layers": "2"}, "the model has blocks 0 to 1"),
    ],
)
def test_refused(source: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_tiny(source, tmp_path / "dist", **options)
    assert not (tmp_path / "dist").exists()
