"""A whole model's CUDA library on an emulated GPU, against the same model on this CPU."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_model import STEPS, Model, random_parameters, run
from support import cuda_emulation

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.table import settled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

LAYERS = 2
# Kernels of a decode step before, in and after the blocks: the slots' copy, the embedding; its
# normalization, five or six a block, the last normalization; the head.
OUTSIDE = 3


@pytest.fixture(scope="module")
def model() -> Model:
    config = ModelConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        rescale_every=2,
        prefill_chunk_size=160,
        # The other block computes in float16.
        fp32_layers=(0,),
    )
    return Model(config, "q4f16_1", "float16")


RANKS: dict[int, dict[str, int]] = {
    5: {},
    6: {"mix_low_rank_dim": 32, "decay_low_rank_dim": 64},
    7: {
        "decay_low_rank_dim": 32,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 96,
    },
}


def _later(version: int) -> Model:
    config = ModelConfig(
        model_version=version,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        rescale_every=2,
        prefill_chunk_size=160,
        fp32_layers=(0,),
        **RANKS[version],  # type: ignore[arg-type]
    )
    return Model(settled(config), "q4f16_1", "float16")


def _compared(model: Model) -> dict[str, list[list[int]]]:
    """The GPU's answers are those of this CPU; what was launched for them, by function."""
    weights = random_parameters(model)
    exact, _ = run(Model(model.config, model.quantization, "float32"), "llvm", weights)
    target = "cuda -arch=sm_90"
    actual, launches = cuda_emulation.run("emulated_model:run", model, target, weights)
    assert actual.keys() == exact.keys()
    np.testing.assert_array_equal(actual.pop("the fresh state"), exact.pop("the fresh state"))
    for name, tensors in exact.items():
        for got, wanted in zip(actual[name], tensors, strict=True):
            assert np.isfinite(got).all(), name
            # The exponent of a state that has read nothing would drown all else.
            known = np.abs(wanted) < 1e20
            error = np.square(got - wanted)[known].mean() / np.square(wanted)[known].mean()
            # float16 activations through two blocks.
            assert error**0.5 < 3e-3, name
    found: dict[str, list[list[int]]] = launches
    return found


@pytest.mark.parametrize("version", RANKS)
def test_later_versions_on_an_emulated_gpu(version: int) -> None:
    launches = _compared(_later(version))
    # Captured once, and replayed from then on.
    first, *others = launches["rwkv_world_decode"]
    assert first[2] == 0 and first[1] > 0
    assert all(other == [OUTSIDE, 0, 1] for other in others)


def test_model_on_an_emulated_gpu(model: Model) -> None:
    launches = _compared(model)
    # The first step runs the kernels once and captures them; every other one replays the graph.
    first, *others = launches["rwkv_world_decode"]
    captured = first[1]
    assert len(others) == 2 * STEPS - 1
    assert first[2] == 0 and first[0] == captured + OUTSIDE
    assert captured <= 6 * LAYERS + 6
    assert all(other == [OUTSIDE, 0, 1] for other in others)
    # A batch has a graph of its own for each number of sequences.
    new = [calls[1] > 0 for calls in launches["rwkv_world_batch_decode"]]
    assert new == [True] + [False] * (STEPS - 1) + [True, False]
    replayed = [calls for calls in launches["rwkv_world_batch_decode"] if not calls[1]]
    assert all(calls == [OUTSIDE, 0, 1] for calls in replayed)
