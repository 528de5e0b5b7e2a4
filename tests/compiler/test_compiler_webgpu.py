"""Whole models by a real WebGPU, against the reference in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from emulated_model import STEPS, Answers, Model, exact, exact_logits, random_parameters, run
from support import webgpu
from support.once import once

from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.stock.kernels.logits import reference_bitmask, reference_penalty
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.versions.table import settled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(webgpu.missing() is not None, reason=webgpu.missing() or ""),
]

VERSIONS = (4, 5, 6, 7)
# Relative root mean square, by the type that products compute in.
BOUNDS = {"float32": 1e-5, "float16": 4e-3}
RANKS: dict[int, dict[str, int]] = {
    4: {},
    5: {},
    6: {"mix_low_rank_dim": 32, "decay_low_rank_dim": 64},
    7: {
        "decay_low_rank_dim": 32,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 96,
    },
}


@pytest.fixture(scope="module")
def device(shared: Path) -> webgpu.Device:
    library = shared / "webgpu.so"
    return webgpu.install(once(library, lambda: webgpu.make_library(library)))


def _model(
    version: int, width: int, dtype: str, *, vocab_size: int = 512, layers: int = 2
) -> Model:
    config = ModelConfig(
        model_version=version,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        rescale_every=0,
        prefill_chunk_size=160,
        fp32_layers=(),
        **RANKS[version],  # type: ignore[arg-type]
    )
    return Model(settled(config), {"float32": "q0f32", "float16": "q0f16"}[dtype], dtype)


def _hold(found: Answers, wanted: Answers, bound: float) -> None:
    np.testing.assert_array_equal(found.pop("the fresh state"), wanted.pop("the fresh state"))
    assert found.keys() == wanted.keys()
    errors = {}
    for name, tensors in wanted.items():
        for what, got, right in zip(("logits", "state"), found[name], tensors, strict=True):
            assert np.isfinite(got).all(), name
            # The exponent of a state that has read nothing would drown all else.
            known = np.abs(right) < 1e20
            error = np.square(got - right)[known].mean() / np.square(right)[known].mean()
            errors[name, what] = float(error**0.5)
        # The likeliest token is the same, unless another is as likely to within the error.
        best = np.take_along_axis(tensors[0], found[name][0].argmax(1)[:, None], 1)[:, 0]
        margin = 8 * bound * np.square(tensors[0]).mean() ** 0.5
        assert (tensors[0].max(1) - best < margin).all(), name
    assert {key: error for key, error in errors.items() if error > bound} == {}


@pytest.mark.parametrize(
    "version, width, dtype",
    [
        *((version, 256, "float32") for version in VERSIONS),
        # A minute each at two blocks: 5 and 6 were run by hand.
        *((version, 1024, "float16") for version in (4, 7)),
    ],
)
def test_random_models(device: webgpu.Device, width: int, dtype: str, version: int) -> None:
    """Prompts of many lengths together, batches and steps; kernels of ours were what ran."""
    if dtype == "float16" and not webgpu.has_float16():
        pytest.skip(f"this adapter lacks {webgpu.FLOAT16}")
    model = _model(version, width, dtype, layers=2 if width < 1024 else 1)
    weights = random_parameters(model)
    device.launches.clear()
    found, _ = run(model, "webgpu -host=llvm", weights)
    launched = " ".join(device.launches)
    assert re.search(r"\bwkv", launched) and "linear" in launched
    assert sum(device.launches.values()) > 2 * STEPS
    _hold(found, exact(model, weights), BOUNDS[dtype])


VOCAB = 3000


class Stock:
    """A small model under stock's names, as mlc_llm's engine opens it."""

    def __init__(self, folder: Path) -> None:
        self.model = _model(4, 128, "float32", vocab_size=VOCAB)
        self.weights = random_parameters(self.model)
        config, fmt = self.model.config, format_named("q0f32")
        target = resolve("webgpu -host=llvm")
        described = metadata.describe(config, fmt, parameters(config, fmt), target, "float32")
        mod = export(config, fmt, "float32", STOCK)
        mod = pipeline.run(mod, target.target, config, described, None, additions=STOCK)
        (path,) = library.write(mod, target, folder / "stock.so")
        self.device = tvm.device("webgpu", 0)
        self.machine = tvm.runtime.vm.VirtualMachine(
            tvm.runtime.load_module(str(path)), self.device
        )
        self.params = list(map(self.tensor, self.weights))

    def tensor(self, array: np.ndarray) -> Any:
        return tvm.runtime.tensor(array, self.device)

    def __call__(self, name: str, *arrays: np.ndarray) -> Any:
        """A function's result, or what it makes of its first argument in place."""
        given = list(map(self.tensor, arrays))
        if name.endswith("_inplace"):
            self.machine.module.get_function(name, query_imports=True)(*given)
            return given[0].numpy()
        found = self.machine[name](*given)
        return found.numpy() if hasattr(found, "numpy") else tuple(one.numpy() for one in found)


@pytest.fixture(scope="module")
def stock(device: webgpu.Device, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"))


def test_stock_names(stock: Stock) -> None:
    """Two sequences in one of TVM's RNNStates: prompts together, a step together, one alone."""
    function, shape = tvm.get_global_func, tvm.runtime.ShapeTuple
    state = stock.machine["create_rnn_state"](shape([2]), shape([1]))
    for sequence in (0, 1):
        function("vm.builtin.kv_state_add_sequence")(state, sequence)
    read: list[list[int]] = [[], []]

    def forward(name: str, pieces: dict[int, list[int]], *rest: np.ndarray) -> np.ndarray:
        lengths = shape([len(piece) for piece in pieces.values()])
        function("vm.builtin.kv_state_begin_forward")(state, shape(list(pieces)), lengths)
        ids = np.array([token for piece in pieces.values() for token in piece], np.int32)
        x = stock.machine["embed"](stock.tensor(ids), stock.params).numpy()
        x = x[:, None] if name == "batch_decode" else x[None]
        given = [stock.tensor(array) for array in (x, *rest)]
        logits = stock.machine[name](*given, state, stock.params)[0].numpy()
        function("vm.builtin.kv_state_end_forward")(state)
        for sequence, piece in pieces.items():
            read[sequence] += piece
        wanted = exact_logits(stock.model, stock.weights, [read[sequence] for sequence in pieces])
        found: np.ndarray = logits.reshape(len(pieces), VOCAB)
        assert np.square(found - wanted).mean() < BOUNDS["float32"] ** 2 * np.square(wanted).mean()
        return found

    ends = np.array([4, 7], np.int32)
    forward("batch_prefill", {0: [3, 1, 4, 1, 5], 1: [9, 2, 6]}, ends)
    forward("batch_decode", {0: [5], 1: [2999]})
    forward("decode", {1: [8]})
    forward("prefill", {0: [9, 7, 9]})


def test_engine_functions(stock: Stock) -> None:
    """What the engine does with logits."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32) * 4
    heat = np.array([1.0, 0.5, 2.0], np.float32)
    probs = stock("softmax_with_temperature", logits[:, None], heat)[:, 0]
    scaled = np.exp(logits.astype(np.float64) / heat[:, None])
    np.testing.assert_allclose(probs, scaled / scaled.sum(1, keepdims=True), rtol=1e-4, atol=1e-9)

    owner, tokens = np.array([0, 0, 1], np.int32), np.array([5, VOCAB - 1, 5], np.int32)
    counts, rows = np.array([1, 3, 2], np.int32), np.array([0, 2], np.int32)
    penalties = np.array([[0.5, 0.25, 1.5], [0.0, 0.1, 2.0]], np.float32)
    given = (rows, owner, tokens, counts, penalties)
    found = stock("apply_penalty_inplace", logits, *given)
    np.testing.assert_allclose(found, reference_penalty(logits, *given), rtol=1e-6, atol=1e-6)
    mask = rng.integers(-(2**31), 2**31, (3, -(-VOCAB // 32))).astype(np.int32)
    found = stock("apply_bitmask_inplace", logits, rows, mask)
    # WGSL spells the least number with seven digits.
    np.testing.assert_allclose(found, reference_bitmask(logits, rows, mask), rtol=1e-6)
    changed = logits.copy()
    changed[owner, tokens] += 1
    found = stock("apply_logit_bias_inplace", logits, owner, tokens, np.ones(3, np.float32))
    np.testing.assert_allclose(found, changed, rtol=1e-6)
