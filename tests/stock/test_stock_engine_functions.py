"""What mlc_llm's engine does with logits, compiled for this CPU with a whole model around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from support.modules import small_config, small_module

from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.stock.kernels.logits import reference_bitmask, reference_penalty
from mlc_rwkv_world.stock.limits import ENGINE_PREFILL_TOKENS
from mlc_rwkv_world.storage import format_named

pytestmark = pytest.mark.slow

VOCAB = 65536
SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 1}
FIRST_UNSAMPLED = 65529


@pytest.fixture(scope="module")
def machine() -> Any:
    """A model with the World vocabulary, as the engine opens it."""
    config, fmt, target = small_config(**SIZES), format_named("q0f16"), resolve("llvm")
    described = metadata.describe(config, fmt, parameters(config, fmt), target, "float32")
    mod = small_module("q0f16", "float32", **SIZES)
    heard: list[str] = []
    lowered = pipeline.run(mod, target.target, config, described, None, heard.append, STOCK)
    assert heard == list(pipeline.PHASES)
    with library.lowering(target.target):
        executable = tvm.relax.build(
            lowered, target.target, relax_pipeline=tvm.transform.Sequential([])
        )
    return tvm.relax.VirtualMachine(executable, tvm.cpu())


def function(machine: Any, name: str) -> Any:
    """A function that is no part of the virtual machine's own."""
    return machine.module.get_function(name, query_imports=True)


def softmax(machine: Any, logits: np.ndarray, temperature: list[float]) -> np.ndarray:
    """`logits` [B, V] as the engine gives them."""
    probs = machine["softmax_with_temperature"](
        tvm.runtime.tensor(logits[:, None, :]),
        tvm.runtime.tensor(np.array(temperature, np.float32)),
    )
    assert probs.shape == (len(logits), 1, VOCAB)
    return np.asarray(probs.numpy()[:, 0])


def test_softmax(machine: Any) -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32) * 8 + 300
    heat = [1.0, 0.3, 2.5]
    probs = softmax(machine, logits, heat)
    scaled = logits[:, :FIRST_UNSAMPLED].astype(np.float64) / np.array(heat)[:, None]
    expected = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs[:, :FIRST_UNSAMPLED], expected, rtol=1e-4, atol=1e-9)
    assert not probs[:, FIRST_UNSAMPLED:].any()


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0, 8.0, 30.0])
def test_probabilities_add_up(machine: Any, spread: float) -> None:
    """A draw below 1 always finds a token: the engine dies where the sum is less."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        logits = rng.standard_normal((3, VOCAB)).astype(np.float32) * np.float32(spread)
        sums = softmax(machine, logits, [1.0] * 3).sum(axis=1, dtype=np.float64)
        assert (sums >= 1).all()
        assert (sums < 1 + 3e-5).all()


def test_softmax_at_no_temperature(machine: Any) -> None:
    logits = np.full((4, VOCAB), -5, np.float32)
    logits[0, 7] = 3
    # Two that share, and one that is less by the least there is.
    logits[1, [100, 65528]] = 2
    logits[1, 101] = np.nextafter(np.float32(2), np.float32(0))
    # An id without a token is the greatest.
    logits[2, 65530], logits[2, 9] = 50, 1
    logits[3, 12] = np.float32(3e38)
    probs = softmax(machine, logits, [0.0, 0.0, 0.0, 1e-6])
    expected = np.zeros((4, VOCAB), np.float32)
    expected[0, 7] = expected[2, 9] = expected[3, 12] = 1
    expected[1, [100, 65528]] = 0.5
    np.testing.assert_array_equal(probs, expected)


def test_penalties(machine: Any) -> None:
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32)
    # The engine leaves out rows without penalties.
    rows = np.array([0, 2], np.int32)
    owner = np.array([0, 0, 1, 1, 1], np.int32)
    tokens = np.array([5, 65535, 5, 0, 999], np.int32)
    counts = np.array([1, 3, 2, 1, 7], np.int32)
    penalties = np.array([[0.5, 0.25, 1.5], [0.0, 0.1, 2.0]], np.float32)
    arguments = [rows, owner, tokens, counts, penalties]
    tensor = tvm.runtime.tensor(logits)
    function(machine, "apply_penalty_inplace")(tensor, *map(tvm.runtime.tensor, arguments))
    expected = reference_penalty(logits, *arguments)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert (tensor.numpy()[1] == logits[1]).all()


def test_bias(machine: Any) -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    tensor = tvm.runtime.tensor(logits)
    rows, tokens = np.array([1, 1, 0], np.int32), np.array([3, 65535, 3], np.int32)
    bias = np.array([0.5, -1, 2], np.float32)
    function(machine, "apply_logit_bias_inplace")(
        tensor, *map(tvm.runtime.tensor, (rows, tokens, bias))
    )
    logits[rows, tokens] = bias
    np.testing.assert_array_equal(tensor.numpy(), logits)


def test_bitmask(machine: Any) -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32)
    mask = rng.integers(-(2**31), 2**31, (3, VOCAB // 32)).astype(np.int32)
    rows = np.array([2, 0], np.int32)
    tensor = tvm.runtime.tensor(logits)
    function(machine, "apply_bitmask_inplace")(tensor, *map(tvm.runtime.tensor, (rows, mask)))
    np.testing.assert_array_equal(tensor.numpy(), reference_bitmask(logits, rows, mask))


def test_embedding_buffer(machine: Any) -> None:
    buffer = machine["alloc_embedding_tensor"]()
    config = small_config(**SIZES)
    assert buffer.shape == (ENGINE_PREFILL_TOKENS, config.hidden_size)
    assert buffer.dtype == "float32"
