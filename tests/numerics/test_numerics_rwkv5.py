"""RWKV-5 and 6 in float16: overflows planted in random models are found and cured; halvings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Tensors, random_rwkv5, write_pth
from support.once import once

import mlc_rwkv_world as world
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG
from mlc_rwkv_world.numerics.inspection import inspect
from mlc_rwkv_world.numerics.perplexity import predict
from mlc_rwkv_world.numerics.subject import open_subject

pytestmark = pytest.mark.slow

LAYERS, WIDTH, HEAD, POSITIONS = 3, 64, 32, 12
# What takes values of about 3 out of float16's range, and squares of about 10.
LARGE, SQUARE = 2.0**16, 2.0**7
TEXTS = ("The capital of France is Paris, and that of Italy is",)
VERSIONS = ("5.0", "5.2", "6.0")

# By case, what is multiplied in a block, and what is found there. The norm of a head sees no factor
# of its key.
PLANTED: dict[str, tuple[dict[str, float], str]] = {
    "key": ({"att.key.weight": LARGE}, "attention.key"),
    "square": (
        {"ffn.key.weight": SQUARE, "ffn.value.weight": SQUARE**-2},
        "feed_forward.key square",
    ),
}


def _tensors(
    version: str, case: str | None = None, layer: int = 0, layers: int = LAYERS
) -> Tensors:
    tensors = random_rwkv5(layers, WIDTH, version=version, head_size=HEAD, seed=21)
    for name, factor in PLANTED[case][0].items() if case else ():
        tensors[f"blocks.{layer}.{name}"] *= np.float32(factor)
    return tensors


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("case", PLANTED)
@pytest.mark.parametrize("version", VERSIONS)
def test_found_where_it_is(tmp_path: Path, version: str, case: str, layer: int) -> None:
    path = write_pth(tmp_path / "model.pth", _tensors(version, case, layer))
    report = inspect(open_subject(path, quantization="q0f16", float32_keys=False), texts=TEXTS)
    why = f"{PLANTED[case][1]} gives infinity"
    assert [need.block for need in report.needed] == [layer]
    assert report.needed[0].why.startswith(why)
    artifact = world.build(
        path,
        target="llvm",
        quantization="q0f16",
        output=tmp_path,
        fp32_layers="auto",
        float32_keys=False,
        library=False,
    )
    assert artifact.fp32_layers == (layer,)
    config = json.loads((artifact.params / CHAT_CONFIG).read_text())["model_config"]
    assert config["fp32_reasons"][0].startswith(f"block {layer}: {why}")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_healthy_model_needs_none(tmp_path: Path, version: str) -> None:
    path = write_pth(tmp_path / "model.pth", _tensors(version))
    report = inspect(open_subject(path, quantization="q0f16"), texts=TEXTS)
    assert report.recommended == () and not report.needed


@pytest.fixture(scope="session")
def engine(shared: Path) -> Callable[..., world.Engine]:
    """`engine(version, case, options)`: block 1 of a random model planted so, in true float16."""

    def loaded(version: str, case: str | None, **options: Any) -> world.Engine:
        output = shared / "planted5" / "-".join(map(str, (version, case, *options.values())))
        pth = output / "model.pth"
        layers = options.pop("layers", LAYERS)
        once(pth, lambda: write_pth(pth, _tensors(version, case, 1, layers)))
        given: dict[str, Any] = {"quantization": "q0f16", "compute_dtype": "float16"}
        build = {**given, "target": "llvm", "stock": False, **options}
        once(output / "dist", lambda: world.build(pth, output=output / "dist", **build))
        (folder,) = (output / "dist").iterdir()
        return world.load(folder, "cpu")

    return loaded


def _logits(engine: world.Engine) -> np.ndarray:
    """After a prompt, and after each of some steps."""
    ids = [int(i) for i in np.random.default_rng(3).integers(1, 65530, POSITIONS)]
    state = engine.new_state()
    first = engine.prefill(ids[:4], state)
    return np.stack([first, *(engine.decode(token, state) for token in ids[4:])])


def _error(found: np.ndarray, right: np.ndarray) -> float:
    """Of root mean squares; infinite where a logit is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.sqrt(np.square(found - right).mean() / np.square(right).mean()))


@pytest.mark.parametrize(("version", "case"), [("5.2", "square"), ("6.0", "key")])
def test_float32_in_the_block_cures_it(
    engine: Callable[..., world.Engine], version: str, case: str
) -> None:
    keys = {"float32_keys": False}
    right = _logits(engine(version, case, compute_dtype="float32", **keys))
    assert _error(_logits(engine(version, case, fp32_layers="none", **keys)), right) > 0.2
    assert _error(_logits(engine(version, case, fp32_layers="1", **keys)), right) < 0.01


@pytest.mark.parametrize("version", ["5.2", "6.0"])
def test_halvings(engine: Callable[..., world.Engine], version: str) -> None:
    """Of seven blocks, the last reads a residual that was halved, as `rescale_every` 6 says."""
    right = _logits(engine(version, None, layers=7, quantization="q0f32", compute_dtype="float32"))
    halved = engine(version, None, layers=7)
    assert _error(_logits(halved), right) < 0.01
    config = json.loads((halved.folder / "params" / CHAT_CONFIG).read_text())["model_config"]
    assert config["rescale_every"] == 6
    assert np.isfinite(predict(halved, TEXTS[0]).perplexity)
