"""Whole models by a real WebGPU, against the reference in float64."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from emulated_model import (
    BOUNDS,
    STEPS,
    exact,
    exact_logits,
    hold,
    random_parameters,
    run,
    unquantized,
)
from support import webgpu

import mlc_rwkv_world as world
from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.stock.kernels.logits import reference_bitmask, reference_penalty
from mlc_rwkv_world.stock.kernels.sampling import reference_draw, reference_sample
from mlc_rwkv_world.storage import format_named

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(webgpu.missing() is not None, reason=webgpu.missing() or ""),
]

DEMO = Path(__file__).parents[2] / "demo"
VERSIONS = (4, 5, 6, 7)


@pytest.fixture(scope="module")
def device(shared: Path) -> webgpu.Device:
    return webgpu.install(shared)


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
    model = unquantized(version, width, dtype, layers=2 if width < 1024 else 1)
    weights = random_parameters(model)
    device.launches.clear()
    found, _ = run(model, "webgpu -host=llvm", weights)
    launched = " ".join(device.launches)
    assert re.search(r"\bwkv", launched) and "linear" in launched
    assert sum(device.launches.values()) > 2 * STEPS
    hold(found, exact(model, weights), BOUNDS[dtype])


# Tokens that are drawn. RWKV-7 ends its empty thought with two of them.
LONGEST = 10
ASKED = 2


def _texts(engine: world.Engine, prompts: list[str]) -> list[str]:
    """What a model writes after each prompt, read in two pieces and decoded together."""
    ids = [engine.tokenizer.encode(prompt) for prompt in prompts]
    states = [engine.new_state() for _ in ids]
    engine.prefill_batch([one[:5] for one in ids], states)
    logits = engine.prefill_batch([one[5:] for one in ids], states)
    chosen: list[list[int]] = [[] for _ in ids]
    for _ in range(LONGEST):
        tokens = [int(row.argmax()) for row in logits]
        for row, token in zip(chosen, tokens, strict=True):
            row.append(token)
        logits = engine.decode_batch(tokens, states)
    # Alone, the first one begins as it did among the others.
    state = engine.new_state()
    logits = engine.prefill(ids[0], state)
    for token in chosen[0][:3]:
        assert int(logits.argmax()) == token
        logits = engine.decode(token, state)
    return [engine.tokenizer.decode(row) for row in chosen]


# The other two pairs were run by hand: each takes half a minute.
@pytest.mark.parametrize(
    "version, quantization, fp32_layers", [(4, "q4f16_1", "0"), (7, "q4f32_1", "none")]
)
def test_trained_models_answer_as_on_the_cpu(
    device: webgpu.Device,
    version: int,
    quantization: str,
    fp32_layers: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """From a checkpoint to answers, by the commands' own functions: quantized weights, a block in
    float32 where the others are float16.
    """
    if "f16" in quantization and not webgpu.has_float16():
        pytest.skip(f"this adapter lacks {webgpu.FLOAT16}")
    demo = {4: "demo", 7: "demo7"}[version]
    checkpoint = request.getfixturevalue(f"{demo}_checkpoint")
    on_cpu = world.load(request.getfixturevalue(f"{demo}_artifact")("q4f16_1"), "cpu")
    built = world.build(
        checkpoint,
        target="webgpu -host=llvm",
        quantization=quantization,
        fp32_layers=fp32_layers,
        output=tmp_path,
        stock=False,
    )
    device.launches.clear()
    engine = world.load(built.folder, "webgpu")
    lines = [
        json.loads(line) for line in (DEMO / "questions.jsonl").read_text("utf-8").splitlines()
    ]
    short = [
        line for line in lines if len(on_cpu.tokenizer.encode(" " + line["answer"])) < LONGEST - 2
    ]
    asked = short[:: len(short) // ASKED][:ASKED]
    ending = "Assistant:" if version == 4 else "Assistant: <think>\n</think"
    prompts = [f"User: {line['questions'][0]}\n\n{ending}" for line in asked]
    found = _texts(engine, prompts)
    assert found == _texts(on_cpu, prompts)
    for line, text in zip(asked, found, strict=True):
        assert line["answer"] in text
    assert device.launches


VOCAB = 3000


class Stock:
    """A small model under stock's names, as mlc_llm's engine opens it."""

    def __init__(self, folder: Path) -> None:
        self.model = unquantized(4, 128, "float32", vocab_size=VOCAB)
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


def test_drawing_tokens(stock: Stock) -> None:
    """What the engine draws tokens with; tests/stock goes into the details."""
    rng = np.random.default_rng(2)
    probs = np.exp(rng.standard_normal((3, VOCAB)) * 4)
    probs = (probs / probs.sum(1, keepdims=True)).astype(np.float32)
    values, ids = stock("argsort_probs", probs)
    np.testing.assert_array_equal(ids, np.argsort(-probs, axis=1, kind="stable"))
    np.testing.assert_array_equal(values, np.take_along_axis(probs, ids.astype(np.int64), 1))
    uniform, rows = rng.random(300).astype(np.float32), rng.integers(0, 3, 300).astype(np.int32)
    top_p = np.array([0.0, 0.5, 1.0], np.float32)
    chosen = stock("sample_with_top_p", values, ids, uniform, rows, top_p)
    wanted = reference_sample(values, ids, uniform, rows, top_p)
    # A sum in float32 may fall to the other side of u.
    assert (chosen == wanted).mean() > 0.98
    drawn = stock("multinomial_from_uniform", probs, uniform, rows)
    assert (drawn == reference_draw(probs, uniform, rows)).mean() > 0.98
    places = np.array([0, VOCAB + 7], np.int32)
    of_chosen, of_places, at_places = stock("sampler_take_probs", probs, ids, rows, chosen, places)
    np.testing.assert_array_equal(of_chosen, probs[rows, chosen])
    np.testing.assert_array_equal(of_places, values[[0, 1], [0, 7]])
    np.testing.assert_array_equal(at_places, ids[[0, 1], [0, 7]])
    kept = stock("renormalize_by_top_p", probs, top_p, np.zeros((3, 3), np.float32))
    assert (kept[0] > 0).sum() == 1 and kept[0, ids[0, 0]] == 1
    sums = np.cumsum(values[1].astype(np.float64))
    assert abs(int((kept[1] > 0).sum()) - int((sums < 0.5).sum()) - 1) <= 1
    np.testing.assert_allclose(kept.sum(1), 1, rtol=1e-5)
