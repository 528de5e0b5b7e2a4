"""One target for each parser of a file: read these bytes, give a result or a named error.

A target raises nothing but what its parser may raise; what the parser accepts is held to what
it promises. Seeds lie in `seeds/<name>/`.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from support.hub_answers import answering

from mlc_rwkv_world.artifact import registry
from mlc_rwkv_world.artifact.config import ChatConfig
from mlc_rwkv_world.artifact.embedded import read_embedded
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG, LIBRARY_ENDINGS, PARAMS_DIR, SHA256SUMS
from mlc_rwkv_world.artifact.metadata import LibraryMetadata
from mlc_rwkv_world.artifact.registry import HOME_VARIABLE, REGISTRY
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.checkpoint.file_kind import kind_of
from mlc_rwkv_world.checkpoint.folder import find_weights, is_plain_name, read_json
from mlc_rwkv_world.checkpoint.hub import choose_files
from mlc_rwkv_world.checkpoint.hub_cache import find_cached
from mlc_rwkv_world.checkpoint.hub_client import HubClient, Refused, Unreachable
from mlc_rwkv_world.checkpoint.hub_id import HubId, parse_hub_id
from mlc_rwkv_world.checkpoint.names import canonical_name
from mlc_rwkv_world.checkpoint.origin import RECORD, Record
from mlc_rwkv_world.checkpoint.pickled_tensors import PickledTensor, read_pickled_tensors
from mlc_rwkv_world.checkpoint.safetensors_file import read_safetensors_file
from mlc_rwkv_world.checkpoint.shape import ModelShape, apply_config, shape_of_tensors
from mlc_rwkv_world.checkpoint.stored import FLOAT_WORDS, Region, StoredTensor
from mlc_rwkv_world.checkpoint.torch_file import read_torch_file
from mlc_rwkv_world.checkpoint.training_file import weights_of
from mlc_rwkv_world.errors import (
    ArtifactError,
    DownloadError,
    RwkvWorldError,
    StateError,
    VocabularyError,
)
from mlc_rwkv_world.runtime import state_file
from mlc_rwkv_world.runtime.elf import check_library
from mlc_rwkv_world.runtime.sampler import Sampler, Sampling
from mlc_rwkv_world.runtime.state_file import StateFile
from mlc_rwkv_world.runtime.tuned_file import is_torch_file, read_tuned
from mlc_rwkv_world.tokenizer import WorldTokenizer

SEEDS = Path(__file__).parent / "seeds"
STATE_SHAPE = (2, 5, 8)
# Blocks, heads, and the sides of a head's matrix.
TUNED_SHAPE = (2, 2, 4, 4)
STATE_MODEL = "ab" * 32
STATE_SHA256 = "cd" * 32
SHAPE = ModelShape(2, 4, 4, 16, 65536)
LONGEST_MESSAGE = 4000

# Files in memory are written thousands of times a second.
_MEMORY = Path("/dev/shm")
_folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
_vocabulary = b"".join(b"%d b'\\x%02x' 1\n" % (byte + 1, byte) for byte in range(256))


@dataclass(frozen=True)
class Target:
    """`read` may raise RwkvWorldError and nothing else."""

    name: str
    read: Callable[[bytes], object]

    @property
    def seeds(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((SEEDS / self.name).iterdir())]

    def run(self, data: bytes) -> bool:
        """Whether `data` was accepted; AssertionError where an error's message cannot be shown."""
        try:
            self.read(data)
        except RwkvWorldError as error:
            message = str(error)
            assert 10 < len(message) < LONGEST_MESSAGE, message
            assert message.isprintable(), repr(message)
            return False
        return True


def _write(name: str, data: bytes) -> Path:
    path = _folder / name
    path.write_bytes(data)
    return path


def _checkpoint(data: bytes) -> None:
    path = _write("w.pth", data)
    read = {"torch": read_torch_file, "safetensors": read_safetensors_file}[kind_of(path)]
    total = 0
    for tensor in read(path):
        if tensor.dtype in FLOAT_WORDS and (total := total + tensor.size) < 1 << 22:
            array = tensor.read()
            assert array.shape == tensor.shape
            assert np.isfinite(array).all()


def _training_file(data: bytes) -> None:
    """The pickle of a torch file, which no checksum stands before."""
    for name, tensor in weights_of(Path("w.pth"), read_pickled_tensors(data, "w.pth")).items():
        assert isinstance(name, str)
        assert isinstance(tensor, PickledTensor)


def _tensor_names(data: bytes) -> None:
    """A model's tensors under the names in `data`, one on each line."""
    shapes = SHAPE.tensor_shapes()
    tensors = {}
    for name in data.decode("utf-8", errors="surrogateescape").split("\n"):
        canonical = canonical_name(name)
        assert canonical_name(canonical) == canonical
        shape = shapes.get(canonical, (4,))
        region = Region(Path("w.pth"), 0, 0)
        tensors[canonical] = StoredTensor(name, "float32", shape, (1,) * len(shape), 0, region)
    assert shape_of_tensors(Path("w.pth"), tensors) == SHAPE


def _hub_address(data: bytes) -> None:
    text, _, revision = data.decode("utf-8", errors="surrogateescape").partition("\n")
    found = parse_hub_id(text, revision or None)
    assert parse_hub_id(str(found)) == found
    assert found.repo.count("/") == 1
    assert is_plain_name(found.folder_name)
    assert ".." not in (found.file or "").split("/")


_hub = ("https://hub.example", "secret")


def _hub_client() -> HubClient:
    with patch.dict(os.environ, {"HF_ENDPOINT": _hub[0], "HF_TOKEN": _hub[1]}):
        return HubClient()


def _hub_list(data: bytes) -> None:
    source = HubId("a/b")
    with answering(lambda _: (200, {}, data)):
        commit, names = _hub_client().files(source)
    assert len(commit) == 40
    for prefer_safetensors in (False, True):
        for name in choose_files(source, names, prefer_safetensors=prefer_safetensors):
            assert (_folder / name).resolve().is_relative_to(_folder)


def _hub_head(data: bytes) -> None:
    """A status, a line feed and headers."""
    status, _, headers = data.partition(b"\n")
    number = int(status) if status.isdigit() and len(status) == 3 and status > b"199" else 200
    pairs = [line.split(b":", 1) for line in headers.splitlines() if b":" in line]

    def answer(request: Any) -> tuple[int, Any, bytes]:
        home = str(request.url).startswith(f"{_hub[0]}/")
        assert home or _hub[1] not in str(request.headers)
        return number, [(name.strip(), value.strip()) for name, value in pairs], b""

    try:
        with answering(answer):
            remote = _hub_client().describe(HubId("a/b"), "a" * 40, "w.pth")
    except (Refused, Unreachable) as error:
        raise DownloadError(str(error)) from error
    assert 0 <= remote.size < 1e15
    assert remote.etag


def _hub_cache(data: bytes) -> None:
    repo = _folder / "hub" / "models--a--b"
    snapshot = repo / "snapshots" / ("0123456789" * 4)
    for place in (snapshot, repo / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    (snapshot / "model.safetensors").touch()
    (repo / "refs" / "main").write_bytes(data)
    with patch.dict(os.environ, {"HF_HUB_CACHE": str(repo.parent)}):
        found = find_cached(HubId("a/b"))
    if found is None:
        raise DownloadError("it is not in the hub's cache")
    assert found == snapshot


def _hub_record(data: bytes) -> None:
    record = Record.read(_write(RECORD, data).parent)
    if record is None:
        raise DownloadError("the record is damaged")
    for name in record.files:
        # A zero in a path is an error of Python's own.
        if "\0" not in name and name.isprintable():
            record.has(_folder, name)


def _weights_index(data: bytes) -> None:
    path = _write("model.safetensors.index.json", data)
    for number in (1, 2):
        _write(f"model-0000{number}-of-00002.safetensors", b"")
    for file in find_weights(path.parent).files:
        assert file.parent == path.parent


def _model_config(data: bytes) -> None:
    path = _write("config.json", data)
    apply_config(path.parent, path, read_json(path), SHAPE)


def _state_file(data: bytes) -> None:
    file = StateFile.read(_write("state", data), model=STATE_MODEL, shape=STATE_SHAPE)
    assert file.state.shape == STATE_SHAPE
    assert np.isfinite(file.state).all()
    file.count("tokens_read")


def _signed_state(data: bytes) -> None:
    """A state file whose checksum is right: whoever forges a file can compute it too."""
    with patch.object(state_file, "_digest", return_value=STATE_SHA256):
        file = StateFile.read(_write("state", data), model=STATE_MODEL, shape=STATE_SHAPE)
    assert np.isfinite(file.state).all()
    sampler = Sampler(Sampling(), 1, 65530)
    sampler.restore(file.extra)
    assert 0 <= sampler.sample(np.zeros(65536, np.float32)) < 65530


def _tuned_state(data: bytes) -> None:
    """A `.pth` file, or the pickle in one, whose storages 0 and 1 suit a model's two blocks."""
    if not data.startswith(b"PK"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("state/data.pkl", data)
            for key in "01":
                file.writestr(f"state/data/{key}", np.ones(TUNED_SHAPE[1:], np.float32).tobytes())
        data = archive.getvalue()
    path = _write("state.pth", data)
    if not is_torch_file(path):
        raise StateError("the file was not written by torch")
    matrices = read_tuned(path, TUNED_SHAPE)
    assert matrices.shape == TUNED_SHAPE and matrices.dtype == np.float32
    assert np.isfinite(matrices).all()


def _artifact_index(data: bytes) -> None:
    for name, size in (("params_shard_0.bin", 256), ("params_shard_1.bin", 16)):
        _write(name, bytes(size))
    index = ParameterIndex.read(_write("tensor-cache.json", data).parent)
    assert len(index.identity) == 64
    for tensor in index.tensors.values():
        assert index.path(tensor.shard).parent == _folder
        assert tensor.offset + tensor.nbytes <= index.nbytes
    index.check_files()


def _artifact_list(data: bytes) -> None:
    params = _folder / "artifact" / PARAMS_DIR
    params.mkdir(parents=True, exist_ok=True)
    for place in (params, params.parent):
        (place / CHAT_CONFIG).touch()
    (params.parent / SHA256SUMS).write_bytes(data)
    found = find(params.parent)
    assert found.params == params
    for library in found.libraries:
        assert library.parent == params.parent and library.suffix in LIBRARY_ENDINGS


def _artifact_record(data: bytes) -> None:
    """The user's own record: whatever is wrong with it, it is an empty one."""
    home = _folder / "home"
    home.mkdir(exist_ok=True)
    (home / REGISTRY).write_bytes(data)
    with patch.dict(os.environ, {HOME_VARIABLE: str(home)}):
        record = registry.Record.read()
    if not record.folders:
        raise ArtifactError("nothing is recorded")
    for folder in record.folders:
        assert folder.is_absolute()
        assert not record.holds(folder)
        assert record.doubt(folder)


def _chat_config(data: bytes) -> None:
    config = ChatConfig.read(_write("mlc-chat-config.json", data).parent)
    assert (_folder / config.tokenizer_file).parent == _folder


def _library_metadata(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    assert LibraryMetadata.parse(text, "lib.so").prefill_chunk_size > 0


def _vocabulary_file(data: bytes) -> None:
    blobs = [data]
    if not data.startswith((b"\x80", b"\xde", b"\xdf")):
        blobs.append(_vocabulary + data)
    last: VocabularyError | None = None
    for blob in blobs:
        try:
            tokenizer = WorldTokenizer.from_bytes(blob, "vocabulary", 0)
        except VocabularyError as error:
            last = error
            continue
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    if last is not None:
        raise last


def _target_string(data: bytes) -> None:
    from mlc_rwkv_world.compiler.target import resolve

    chosen = resolve(data.decode("utf-8", errors="surrogateescape"))
    try:
        assert resolve(chosen.describe()).kind == chosen.kind
    except RwkvWorldError as error:
        raise AssertionError(f"{chosen.describe()} cannot be read back") from error


def _library_head(data: bytes) -> None:
    path = _write("lib.so", data)
    read_embedded(path)
    check_library(path)


TARGETS = {
    target.name: target
    for target in (
        Target("checkpoint-safetensors", _checkpoint),
        Target("checkpoint-torch", _checkpoint),
        Target("training-file", _training_file),
        Target("tensor-names", _tensor_names),
        Target("hub-address", _hub_address),
        Target("hub-list", _hub_list),
        Target("hub-head", _hub_head),
        Target("hub-cache", _hub_cache),
        Target("hub-record", _hub_record),
        Target("weights-index", _weights_index),
        Target("model-config", _model_config),
        Target("state-file", _state_file),
        Target("state-file-signed", _signed_state),
        Target("tuned-state", _tuned_state),
        Target("artifact-index", _artifact_index),
        Target("artifact-list", _artifact_list),
        Target("artifact-record", _artifact_record),
        Target("chat-config", _chat_config),
        Target("library-metadata", _library_metadata),
        Target("library-head", _library_head),
        Target("vocabulary", _vocabulary_file),
        Target("target-string", _target_string),
    )
}
