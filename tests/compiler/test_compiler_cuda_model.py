"""A whole model's CUDA library on an emulated GPU, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_model import STEPS, Model, exact, random_parameters
from support import cuda_emulation

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.table import settled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulation.missing() is not None, reason=cuda_emulation.missing() or ""),
]

LAYERS = 2
# Launches of a decode step outside of its graph: the slots' copy, the embedding and the head.
OUTSIDE = 3
# What the graph of a decode step launches for two blocks, eight each for RWKV-5 and 7, and around
# them; what RWKV-7's block in float32 gets and gives is converted.
CAPTURED = {5: 2 * 8 + 3, 6: 70, 7: 2 * 8 + 4}


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
        # Four-bit rows of 256 can be streamed; RWKV-6 shows what runs where they cannot.
        hidden_size=128 if version == 6 else 256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        rescale_every=2,
        prefill_chunk_size=160,
        # Of RWKV-7 one block computes in float32; for 5 and 6 that would be the same kernels.
        fp32_layers=(0,) if version == 7 else (),
        **RANKS[version],  # type: ignore[arg-type]
    )
    return Model(settled(config), "q4f16_1", "float16")


def _compared(model: Model) -> dict[str, list[list[int]]]:
    """The GPU's answers are the reference's; what was launched for them, by function."""
    weights = random_parameters(model)
    wanted_answers = exact(model, weights)
    target = "cuda -arch=sm_90"
    actual, launches = cuda_emulation.run("emulated_model:run", model, target, weights)
    assert actual.keys() == wanted_answers.keys()
    fresh = "the fresh state"
    np.testing.assert_array_equal(actual.pop(fresh), wanted_answers.pop(fresh))
    for name, tensors in wanted_answers.items():
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
    assert first == [CAPTURED[version] + OUTSIDE, CAPTURED[version], 0]
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
