"""Each format in each arithmetic of a CPU, against `rwkv` on the weights that the format keeps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv7_logits, rwkv_logits

import mlc_rwkv_world as world
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.storage import Format, format_named
from mlc_rwkv_world.storage.groups import dequantize, quantize

pytestmark = pytest.mark.slow

# Of the exact comparisons of RWKV-4 to 6, whose residual is halved on its way, as formats that
# compute in float16 ask. All others have `small`'s shapes, and its libraries.
LAYERS, WIDTH, HEAD = 7, 96, 32
POSITIONS = 40
# float32's rounding, of the largest logit.
EXACT = 1e-5
# Of root mean squares, by version: inputs rounded to 8 bits through two blocks, or four, which lose
# two thirds of this. `rwkv` itself says what rounding to bfloat16 may cost.
BYTES = {4: 0.01, 5: 0.012, 6: 0.0134, 7: 0.0142}
MATRICES = ("key", "value", "receptance", "output")


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint whose values a format keeps exactly, and `rwkv`'s logits on it."""

    version: int
    pth: Path
    exact: np.ndarray
    ids: list[int]


Models = Callable[..., Model]
Libraries = Callable[..., Path]


@pytest.fixture(scope="module", params=[4, 5, 6, 7])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """`model(format, exact=...)`, of one version."""
    version: int = request.param
    logits: Callable[[Path, Sequence[int]], np.ndarray]
    logits = rwkv7_logits if version == 7 else rwkv_logits
    ids = [int(i) for i in np.random.default_rng(4).integers(1, 65530, POSITIONS)]

    @cache
    def make(quantization: str, exact: bool = False) -> Model:
        fmt = format_named(quantization)
        halved = exact and version != 7
        tensors = _halved(version) if halved else checkpoints.random_small(version, seed=3)
        kept = {name: _kept(name, tensor, fmt) for name, tensor in tensors.items()}
        folder = tmp_path_factory.mktemp(quantization)
        pth = checkpoints.write_pth(folder / "kept.pth", kept)
        return Model(version, pth, logits(pth, ids), ids)

    return make


def _halved(version: int) -> checkpoints.Tensors:
    if version == 4:
        return checkpoints.random_world(LAYERS, WIDTH, seed=3)
    name = {5: "5.2", 6: "6.0"}[version]
    return checkpoints.random_rwkv5(LAYERS, WIDTH, seed=3, version=name, head_size=HEAD)


def _kept(name: str, tensor: np.ndarray, fmt: Format) -> np.ndarray:
    """A tensor after a format has stored it; vectors stay as they are."""
    if re.search(r"\.att\.([wavg][12]|time_(maa|decay)_w[12])$", name):
        # BlinkDL multiplies by these from the other side; RWKV-6 has five in one.
        turned = np.ascontiguousarray(tensor.swapaxes(-1, -2))
        rows = turned.reshape(-1, turned.shape[-1])
        kept = dequantize(quantize(rows, fmt.low_rank), fmt.low_rank).reshape(turned.shape)
        return np.ascontiguousarray(kept.swapaxes(-1, -2))
    if not name.endswith("weight") or tensor.ndim != 2:
        return tensor
    return dequantize(quantize(tensor, fmt.matrix), fmt.matrix)


def _ours(
    model: Model, quantization: str, arithmetic: str, output: Path, library: Path | None = None
) -> list[np.ndarray]:
    """Logits [T, V] by single steps, by steps of a batch, and the last ones by prompts."""
    built = world.build(
        model.pth,
        target="llvm",
        quantization=quantization,
        arithmetic=arithmetic,
        output=output,
        stock=False,
        reuse_lib=library,
    )
    engine = world.load(built.folder)
    ids, one, batch = model.ids, engine.new_state(), [engine.new_state() for _ in range(6)]
    steps = np.stack([engine.decode(token, one) for token in ids])
    together = np.stack([engine.decode_batch([token] * 6, batch)[5] for token in ids])
    prompts = [engine.prefill(ids[:end], engine.new_state()) for end in range(1, POSITIONS + 1)]
    return [steps, together, np.stack(prompts)]


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    """Of root mean squares."""
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
def test_float32_is_exact(
    quantization: str, model: Models, small_library: Libraries, tmp_path: Path
) -> None:
    peer, library = model(quantization, exact=True), None
    if peer.version == 7:
        library = small_library(7, quantization, arithmetic="float32")
    for found in _ours(peer, quantization, "float32", tmp_path, library):
        assert np.abs(found - peer.exact).max() <= EXACT * np.abs(peer.exact).max()


@pytest.mark.parametrize("quantization", ["q4f16_1", "q8f16_1"])
def test_int8_rounds_inputs_only(
    quantization: str, model: Models, small_library: Libraries, tmp_path: Path
) -> None:
    if not multiplies_bytes(resolve("llvm").target):
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    peer = model(quantization)
    library = small_library(peer.version, quantization, arithmetic="int8")
    for found in _ours(peer, quantization, "int8", tmp_path, library):
        assert EXACT < _error(found, peer.exact) < BYTES[peer.version]


def test_bfloat16_is_closer_than_rwkv_in_bfloat16(
    model: Models, small_library: Libraries, tmp_path: Path
) -> None:
    peer = model("q0f16")
    logits = rwkv7_logits if peer.version == 7 else rwkv_logits
    theirs = _error(logits(peer.pth, peer.ids, "cpu bf16"), peer.exact)
    library = small_library(peer.version, "q0f16", arithmetic="bfloat16")
    for found in _ours(peer, "q0f16", "bfloat16", tmp_path, library):
        assert EXACT < _error(found, peer.exact) < theirs
