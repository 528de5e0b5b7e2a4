"""Each format in each arithmetic of a CPU, against `rwkv` on the weights that the format keeps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
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

# The residual is halved on its way, as formats that compute in float16 ask.
LAYERS, WIDTH, POSITIONS = 7, 96, 40
# float32's rounding, of the largest logit.
EXACT = 1e-5
# Of root mean squares: inputs rounded to 8 bits through seven blocks. `rwkv` itself says what
# rounding to bfloat16 may cost.
BYTES = 0.02
MATRICES = ("key", "value", "receptance", "output")


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint whose values a format keeps exactly, and `rwkv`'s logits on it."""

    version: int
    pth: Path
    exact: np.ndarray
    ids: list[int]


@pytest.fixture(scope="module", params=[4, 5, 6, 7])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Model]:
    """`model(format)`, of one version."""
    logits: Callable[[Path, Sequence[int]], np.ndarray]
    if request.param == 7:
        tensors, logits = checkpoints.random_rwkv7(3, WIDTH, seed=3, head_size=32), rwkv7_logits
    elif request.param == 4:
        tensors, logits = checkpoints.random_world(LAYERS, WIDTH, seed=3), rwkv_logits
    else:
        version = {5: "5.2", 6: "6.0"}[request.param]
        tensors, logits = (
            checkpoints.random_rwkv5(LAYERS, WIDTH, seed=3, version=version, head_size=32),
            rwkv_logits,
        )
    ids = [int(i) for i in np.random.default_rng(4).integers(1, 65530, POSITIONS)]
    made: dict[str, Model] = {}

    def make(quantization: str) -> Model:
        if quantization not in made:
            fmt = format_named(quantization)
            kept = {name: _kept(name, tensor, fmt) for name, tensor in tensors.items()}
            folder = tmp_path_factory.mktemp(quantization)
            pth = checkpoints.write_pth(folder / "kept.pth", kept)
            made[quantization] = Model(request.param, pth, logits(pth, ids), ids)
        return made[quantization]

    return make


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


def _ours(model: Model, quantization: str, arithmetic: str, output: Path) -> list[np.ndarray]:
    """Logits [T, V] by single steps, by steps of a batch, and the last ones by prompts."""
    built = world.build(
        model.pth,
        target="llvm",
        quantization=quantization,
        arithmetic=arithmetic,
        output=output,
        stock=False,
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
def test_float32_is_exact(quantization: str, model: Callable[[str], Model], tmp_path: Path) -> None:
    peer = model(quantization)
    for found in _ours(peer, quantization, "float32", tmp_path):
        assert np.abs(found - peer.exact).max() <= EXACT * np.abs(peer.exact).max()


@pytest.mark.parametrize("quantization", ["q4f16_1", "q8f16_1"])
def test_int8_rounds_inputs_only(
    quantization: str, model: Callable[[str], Model], tmp_path: Path
) -> None:
    if not multiplies_bytes(resolve("llvm").target):
        pytest.skip("products of bytes need AVX2 or NEON's dot products")
    peer = model(quantization)
    for found in _ours(peer, quantization, "int8", tmp_path):
        assert EXACT < _error(found, peer.exact) < BYTES


def test_bfloat16_is_closer_than_rwkv_in_bfloat16(
    model: Callable[[str], Model], tmp_path: Path
) -> None:
    peer = model("q0f16")
    logits = rwkv7_logits if peer.version == 7 else rwkv_logits
    theirs = _error(logits(peer.pth, peer.ids, "cpu bf16"), peer.exact)
    for found in _ours(peer, "q0f16", "bfloat16", tmp_path):
        assert EXACT < _error(found, peer.exact) < theirs
