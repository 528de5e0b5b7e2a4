"""What mlc_llm's engine draws tokens with on a GPU: in Metal's source, run here; code for CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from support import metal_emulation
from tvm import relax
from tvm.target import Target

from mlc_rwkv_world.compiler.cuda import compiling
from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.stock.kernels.sampling import reference_draw, reference_sample
from mlc_rwkv_world.stock.passes.add_sampling_functions import AddSamplingFunctions
from mlc_rwkv_world.tvm_script import quick_parsing

pytestmark = pytest.mark.slow

VOCAB = 3000
NAMES = {
    "argsort_probs",
    "multinomial_from_uniform",
    "renormalize_by_top_p",
    "sample_with_top_p",
    "sampler_take_probs",
}


def _module(target: Target) -> tvm.IRModule:
    passes = [
        AddSamplingFunctions(target, VOCAB),
        relax.transform.LegalizeOps(),
        tvm.s_tir.dlight.ApplyDefaultSchedule(*schedule_gpu.rules()),
    ]
    with target, quick_parsing():
        return tvm.transform.Sequential(passes)(tvm.IRModule())


@pytest.fixture(scope="module")
def machine(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All five in Metal's source."""
    if (why := metal_emulation.missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("sampling")
    metal_emulation.install(shared)
    target = resolve("metal -host=llvm").target
    with target:
        built = relax.build(_module(target), target)
    path = folder / "sampling.so"
    built.export_library(str(path))
    return tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.device("metal", 0))


def probabilities(rows: int) -> np.ndarray:
    logits = np.random.default_rng(3).standard_normal((rows, VOCAB)) * 4
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    return probs.astype(np.float32)


def call(machine: Any, name: str, *arrays: Any) -> Any:
    on = tvm.device("metal", 0)
    return machine[name](*(tvm.runtime.tensor(np.asarray(array), on) for array in arrays))


def falling(machine: Any, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, ids = call(machine, "argsort_probs", probs)
    return values.numpy(), ids.numpy()


def test_argsort(machine: Any) -> None:
    """Of equal ones, the lower id comes first."""
    probs = probabilities(3)
    probs[1, 100:2000] = probs[1, 5]
    values, ids = falling(machine, probs)
    np.testing.assert_array_equal(values, -np.sort(-probs, axis=1))
    np.testing.assert_array_equal(np.take_along_axis(probs, ids.astype(np.int64), 1), values)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, np.argsort(-probs, axis=1, kind="stable"))


def test_sampling(machine: Any) -> None:
    probs = probabilities(4)
    values, ids = falling(machine, probs)
    rng = np.random.default_rng(5)
    # Rows need not come in order, nor once; 0 keeps the likeliest, 1 keeps all.
    top_p = np.array([0.0, 0.3, 0.9, 1.0], np.float32)
    rows = rng.integers(0, 4, 500).astype(np.int32)
    uniform = rng.random(500).astype(np.float32)
    uniform[:8], rows[:8] = [0] * 4 + [0.9999999] * 4, [0, 1, 2, 3] * 2
    chosen = call(machine, "sample_with_top_p", values, ids, uniform, rows, top_p).numpy()
    expected = reference_sample(values, ids, uniform, rows, top_p)
    # A sum in float32 may fall to the other side of u.
    assert (chosen == expected).mean() > 0.98
    np.testing.assert_array_equal(chosen[:4], ids[[0, 1, 2, 3], 0])
    assert (chosen[rows == 0] == ids[0, 0]).all()
    for row in (1, 2):
        kept = int((np.cumsum(values[row]) < top_p[row]).sum()) + 2
        assert np.isin(chosen[rows == row], ids[row, :kept]).all()


def test_drawing_without_top_p(machine: Any) -> None:
    """The first id up to which the probabilities, in the order of ids, sum to more than u."""
    probs = probabilities(4)
    rng = np.random.default_rng(6)
    rows = rng.integers(0, 4, 500).astype(np.int32)
    uniform = rng.random(500).astype(np.float32)
    chosen = call(machine, "multinomial_from_uniform", probs, uniform, rows).numpy()
    expected = reference_draw(probs, uniform, rows)
    assert (chosen.dtype, chosen.shape) == (np.int32, (500,))
    # A sum in float32 may fall to the other side of u.
    assert (chosen == expected).mean() > 0.98


def test_looking_probabilities_up(machine: Any) -> None:
    probs = probabilities(3)
    values, ids = falling(machine, probs)
    rows, chosen = np.array([2, 0], np.int32), np.array([17, 2999], np.int32)
    places = np.array([0, 1, VOCAB, 2 * VOCAB + 4], np.int32)
    out = call(machine, "sampler_take_probs", probs, ids, rows, chosen, places)
    of_chosen, of_places, at_places = (array.numpy() for array in out)
    np.testing.assert_array_equal(of_chosen, probs[rows, chosen])
    np.testing.assert_array_equal(of_places, values[[0, 0, 1, 2], [0, 1, 0, 4]])
    np.testing.assert_array_equal(at_places, ids[[0, 0, 1, 2], [0, 1, 0, 4]])


def test_renormalizing(machine: Any) -> None:
    probs = probabilities(3)
    top_p = np.array([0.0, 0.95, 1.0], np.float32)
    guesses = np.zeros((3, 3), np.float32)
    found = call(machine, "renormalize_by_top_p", probs, top_p, guesses).numpy()
    expected = np.zeros_like(probs)
    for row, limit in enumerate(top_p):
        order = np.argsort(-probs[row])
        sums = np.cumsum(probs[row, order].astype(np.float64))
        kept = order[: int((sums - probs[row, order] < max(limit, 1e-30)).sum())]
        expected[row, kept] = probs[row, kept] / probs[row, kept].sum()
    assert (found[:2] > 0).sum(axis=1).tolist() == (expected[:2] > 0).sum(axis=1).tolist()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_code_for_cuda() -> None:
    """All five become kernels and calls of the virtual machine; none was run on a GPU."""
    target = Target(
        {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "thread_warp_size": 32}
        | {"max_shared_memory_per_block": 49152},
        host="llvm",
    )
    mod = _module(target)
    # Its own pipeline goes on from there, nvcc included.
    with compiling(target):
        text = relax.build(mod, target).as_text()
    assert {name for name in NAMES if f"@{name}" in text} == NAMES
