"""Libraries and parameters that do not fit this machine, this package or each other."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.artifacts import list_again

from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.identity import belonging, describe_weights
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.registry import register
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import ArtifactError, VocabularyError
from mlc_rwkv_world.runtime import cpu, library, load
from mlc_rwkv_world.runtime.verify import verify
from mlc_rwkv_world.tokenizer import WorldTokenizer


@pytest.fixture
def artifact(demo_artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the smallest artifact, to be damaged."""
    folder = tmp_path / "demo-q4f16_1"
    shutil.copytree(demo_artifact("q4f16_1"), folder)
    return folder


def library_of(folder: Path) -> Path:
    (path,) = folder.glob("*.so")
    return path


def test_no_library(artifact: Path) -> None:
    path = library_of(artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match=re.escape(f"{path} is missing. Build or copy")):
        load(artifact)
    list_again(artifact)
    with pytest.raises(ArtifactError, match="no compiled library"):
        load(artifact)


def test_no_library_for_this_device(artifact: Path) -> None:
    path = library_of(artifact)
    path.rename(path.with_name("demo-q4f16_1-cuda.so"))
    list_again(artifact)
    with pytest.raises(ArtifactError, match=r"libraries for cuda, and none for cpu"):
        load(artifact, "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a library", "cannot be loaded by TVM"),
        (b"\x7fELF\x02\x01" + bytes(80), "cannot be loaded by TVM"),
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>Not found</html>", r"is a web page \(HTML\)"),
    ],
)
def test_what_is_no_library(artifact: Path, content: bytes, message: str) -> None:
    path = library_of(artifact)
    path.unlink()
    path.write_bytes(content)
    list_again(artifact)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(artifact)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_a_device_in_place_of_a_library(
    artifact: Path, make: Callable[[Path], None]
) -> None:
    path = library_of(artifact)
    path.unlink()
    make(path)
    with pytest.raises(ArtifactError, match=r"is not a regular file\. Build or copy"):
        load(artifact)
    assert read_embedded(path) is None
    assert {v.path for v in verify(find(artifact)) if v.fault is not None} == {path}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_a_truncated_library(artifact: Path) -> None:
    """The system's loader would die of it."""
    path = library_of(artifact)
    data = path.read_bytes()
    path.unlink()
    for length in range(4, len(data), len(data) // 100):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=r"cut short|no library"):
            load(artifact)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_a_library_for_another_machine(artifact: Path) -> None:
    path = library_of(artifact)
    data = bytearray(path.read_bytes())
    data[18:20] = (183 if platform.machine() == "x86_64" else 62).to_bytes(2, "little")
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"was built for \w+, and this machine is"):
        load(artifact)


def test_a_fitting_library_is_taken_where_another_does_not_load(artifact: Path) -> None:
    path = library_of(artifact)
    other = path.with_name("demo-q4f16_1-x86_64-other.so")
    other.write_bytes(b"not for here")
    os.utime(other, (2e9, 2e9))
    list_again(artifact)
    engine = load(artifact)
    assert engine.library.path == path
    (note,) = engine.notes
    assert note.startswith(f"{other} cannot be loaded")


def test_another_revision(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "REVISION", 10**6)
    with pytest.raises(ArtifactError, match="revision"):
        load(artifact)


def test_another_cpu(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = load(artifact).metadata.cpu_features
    if not needed:
        pytest.skip("the library was built for a plain CPU")
    monkeypatch.setattr(cpu, "_flags", lambda: frozenset({"fpu", "fp"}))
    with pytest.raises(ArtifactError, match="built for another CPU: this one lacks"):
        load(artifact)


def test_features_unknown_to_the_system_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.missing_features(["no-such-feature"]) == []
    monkeypatch.setattr(cpu, "_flags", frozenset)
    assert cpu.missing_features(["avx512f", "neon"]) == []


def test_weights_of_another_format(artifact: Path, demo_artifact: Callable[[str], Path]) -> None:
    shutil.rmtree(artifact / "params")
    shutil.copytree(demo_artifact("q0f32") / "params", artifact / "params")
    with pytest.raises(ArtifactError, match="does not belong to the parameters"):
        load(artifact)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(name="model.unknown"), "is missing there"),
        (lambda t: t.update(shape=t["shape"][::-1]), "and the library takes"),
    ],
)
def test_a_parameter_table_of_another_build(artifact: Path, change: Change, message: str) -> None:
    path = artifact / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    change(next(t for t in index["records"][0]["records"] if len(t["shape"]) == 2))
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=message):
        load(artifact)


def test_weights_whose_numbers_mean_something_else(artifact: Path) -> None:
    """The same table of parameters, and another build id: `rescale_every` changes no shape."""
    path = artifact / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    ours = index["metadata"]["build_id"]
    engine = load(artifact)
    assert engine.metadata.build_id == ours
    assert belonging(engine.metadata, ParameterIndex.read(artifact / "params")).certain
    index["metadata"]["build_id"] = "0" * 32
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=rf"has build id {ours}, the weights 0{{32}}\. Build"):
        load(artifact)


def test_weights_without_a_build_id_load(artifact: Path) -> None:
    path = artifact / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    del index["metadata"]["build_id"]
    path.write_text(json.dumps(index))
    found = belonging(load(artifact).metadata, ParameterIndex.read(artifact / "params"))
    assert (found.fault, found.certain) == (None, False)
    assert "without a build id" in str(found)
    index["metadata"]["build_id"] = "none of ours"
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"'build_id' is .* instead of 32 hexadecimal digits"):
        load(artifact)


def test_a_parameter_too_many(artifact: Path) -> None:
    path = artifact / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    records = index["records"][0]["records"]
    records.append(records[0] | {"name": "model.extra"})
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"does not take 'model\.extra'"):
        load(artifact)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("params/mlc-chat-config.json", ArtifactError, "mlc-chat-config.json is missing. Build"),
        ("params/params_shard_0.bin", ArtifactError, "params_shard_0.bin is missing. Build"),
        ("params/tokenizer_model", VocabularyError, "tokenizer_model is missing. Build or copy"),
    ],
)
def test_a_missing_file(artifact: Path, name: str, error: type[Exception], message: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(error, match=re.escape(message)):
        load(artifact)


def test_a_missing_index(artifact: Path) -> None:
    (artifact / "params/tensor-cache.json").unlink()
    load(artifact)
    (artifact / "params/ndarray-cache.json").unlink()
    with pytest.raises(ArtifactError, match="no complete artifact"):
        load(artifact)


@pytest.mark.parametrize(
    "name", ["tensor-cache.json", "mlc-chat-config.json", "tokenizer_model", "params_shard_0.bin"]
)
def test_links_that_leave_the_folder_are_refused(artifact: Path, name: str) -> None:
    path = artifact / "params" / name
    # Not into the artifact's own folder, which with a configuration is one of parameters itself.
    outside = path.rename(artifact.parent / name)
    path.symlink_to(outside)
    with pytest.raises(ArtifactError, match=f"{name} is a link that leaves its folder: refused"):
        load(artifact)


@pytest.mark.slow
def test_doctor_tells_of_weights_without_a_build_id(artifact: Path) -> None:
    build_id = load(artifact).metadata.build_id
    assert describe_weights(artifact / "params").endswith(f": build id {build_id}")
    path = artifact / "params/tensor-cache.json"
    index = json.loads(path.read_text())
    del index["metadata"]["build_id"]
    path.write_text(json.dumps(index))
    assert "no build id" in describe_weights(artifact / "params")
    assert register(artifact)
    command = [sys.executable, "-m", "mlc_rwkv_world", "doctor"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"artifact {artifact / 'params'}: no build id" in said


def test_a_vocabulary_of_another_size(artifact: Path) -> None:
    path = artifact / "params/tokenizer_model"
    path.unlink()
    WorldTokenizer.from_vocab({byte + 1: bytes([byte]) for byte in range(256)}).save(path)
    with pytest.raises(VocabularyError, match=r"tokenizer_model.*256 tokens.*65529"):
        load(artifact)


def test_sampling_defaults_of_the_configuration_are_checked(artifact: Path) -> None:
    path = artifact / "params/mlc-chat-config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top_p": 3}))
    with pytest.raises(ArtifactError, match=r"mlc-chat-config\.json: top_p is 3"):
        load(artifact)
