"""Whole models by a real WebGPU, against the reference in float64 and against this CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from emulated_model import STEPS, Answers, Model, exact, random_parameters, run
from support import webgpu
from support.once import once

import mlc_rwkv_world as world
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.table import settled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(webgpu.missing() is not None, reason=webgpu.missing() or ""),
]

DEMO = Path(__file__).parents[2] / "demo"
VERSIONS = (4, 5, 6, 7)
LAYERS = 2
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


def _model(version: int, width: int, dtype: str, *fp32_layers: int) -> Model:
    config = ModelConfig(
        model_version=version,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS,
        vocab_size=512,
        rescale_every=0,
        prefill_chunk_size=160,
        fp32_layers=fp32_layers,
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
    print("worst", max(errors.values()))
    assert {key: error for key, error in errors.items() if error > bound} == {}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("width, dtype", [(256, "float32"), (1024, "float16")])
def test_random_models(device: webgpu.Device, width: int, dtype: str, version: int) -> None:
    """Prompts of many lengths together, batches and steps; kernels of ours were what ran."""
    if dtype == "float16" and not webgpu.has_float16():
        pytest.skip(f"this adapter lacks {webgpu.FLOAT16}")
    model = _model(version, width, dtype)
    weights = random_parameters(model)
    device.launches.clear()
    found, _ = run(model, "webgpu -host=llvm", weights)
    launched = " ".join(device.launches)
    assert re.search(r"\bwkv", launched) and "linear" in launched
    assert sum(device.launches.values()) > 2 * STEPS * LAYERS
    _hold(found, exact(model, weights), BOUNDS[dtype])


LONGEST = 12


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
    # Alone, the first one is what it was among the others.
    state = engine.new_state()
    logits = engine.prefill(ids[0], state)
    for token in chosen[0]:
        assert int(logits.argmax()) == token
        logits = engine.decode(token, state)
    return [engine.tokenizer.decode(row) for row in chosen]


@pytest.mark.parametrize("quantization", ["q4f32_1", "q4f16_1"])
@pytest.mark.parametrize("version", [4, 7])
def test_trained_models_answer_as_on_the_cpu(
    device: webgpu.Device,
    version: int,
    quantization: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """From a checkpoint to answers, by the commands' own functions; one block of RWKV-4's in
    float32, where the others are float16.
    """
    if "f16" in quantization and not webgpu.has_float16():
        pytest.skip(f"this adapter lacks {webgpu.FLOAT16}")
    demo = {4: "demo", 7: "demo7"}[version]
    checkpoint = request.getfixturevalue(f"{demo}_checkpoint")
    on_cpu = world.load(request.getfixturevalue(f"{demo}_artifact")(quantization), "cpu")
    built = world.build(
        checkpoint,
        target="webgpu -host=llvm",
        quantization=quantization,
        fp32_layers="0" if (version, quantization) == (4, "q4f16_1") else "none",
        output=tmp_path,
        stock=False,
    )
    engine = world.load(built.folder, "webgpu")
    lines = (DEMO / "questions.jsonl").read_text("utf-8").splitlines()[::20]
    ending = "Assistant:" if version == 4 else "Assistant: <think>\n</think"
    prompts = [f"User: {json.loads(line)['questions'][0]}\n\n{ending}" for line in lines]
    found = _texts(engine, prompts)
    assert found == _texts(on_cpu, prompts)
    for line, text in zip(lines, found, strict=True):
        assert json.loads(line)["answer"] in text
    assert device.launches
