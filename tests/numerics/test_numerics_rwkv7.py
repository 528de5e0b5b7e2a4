"""Overflows planted in a random RWKV-7: found block by block, and cured by float32 there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Tensors, random_rwkv7, write_pth
from support.once import once

import mlc_rwkv_world as world
from mlc_rwkv_world.artifact.layout import CHAT_CONFIG
from mlc_rwkv_world.numerics.inspection import inspect
from mlc_rwkv_world.numerics.subject import open_subject

pytestmark = pytest.mark.slow

LAYERS, WIDTH, POSITIONS = 3, 128, 12
# What takes values of about 3 out of float16's range, and squares of about 10.
LARGE, SQUARE = 2.0**16, 2.0**7
TEXTS = ("The capital of France is Paris, and that of Italy is",)

Plant = Callable[[Tensors, int], Tensors]


def _scaled(tensors: Tensors, factors: dict[str, float]) -> Tensors:
    return tensors | {name: tensors[name] * np.float32(factor) for name, factor in factors.items()}


def _key(tensors: Tensors, layer: int) -> Tensors:
    """Normalizations see no factor of a head's key; what it adds to the output is taken back."""
    att = f"blocks.{layer}.att"
    return _scaled(tensors, {f"{att}.key.weight": LARGE, f"{att}.r_k": 1 / LARGE})


def _value(tensors: Tensors, layer: int) -> Tensors:
    """The same of the value; block 0's is in those of all blocks."""
    takers = range(LAYERS) if layer == 0 else (layer,)
    back = {f"blocks.{taker}.att.r_k": 1 / LARGE for taker in takers}
    return _scaled(tensors, {f"blocks.{layer}.att.value.weight": LARGE, **back})


def _square(tensors: Tensors, layer: int) -> Tensors:
    ffn = f"blocks.{layer}.ffn"
    factors = {f"{ffn}.key.weight": SQUARE, f"{ffn}.value.weight": SQUARE**-2}
    return _scaled(tensors, factors)


def _factors(letter: str) -> Plant:
    """What passes between the two factors of a small product."""

    def plant(tensors: Tensors, layer: int) -> Tensors:
        att = f"blocks.{layer}.att.{letter}"
        return _scaled(tensors, {f"{att}1": LARGE, f"{att}2": 1 / LARGE})

    return plant


@dataclasses.dataclass(frozen=True)
class Case:
    plant: Plant
    layer: int
    operation: str
    # Whether float32 out of the products that the recurrence reads is enough.
    by_keys: bool = False


CASES = {
    **{f"key{i}": Case(_key, i, "attention.key", by_keys=True) for i in (0, 1)},
    **{f"value{i}": Case(_value, i, "attention.value", by_keys=True) for i in (0, 1)},
    **{f"square{i}": Case(_square, i, "feed_forward.key square") for i in (0, 1)},
    # The share of block 0's value, which block 0 has none of.
    "share1": Case(_factors("v"), 1, "attention.v1"),
    "rate0": Case(_factors("a"), 0, "attention.a1"),
}


@pytest.fixture(scope="session")
def planted(shared: Path) -> Callable[[str], Path]:
    """`planted(case)`: a checkpoint with one of `CASES`, or with none."""
    tensors = random_rwkv7(LAYERS, WIDTH, seed=21)

    def written(case: str) -> Path:
        path = shared / "planted7" / f"{case}.pth"
        chosen = CASES[case].plant(tensors, CASES[case].layer) if case in CASES else tensors
        return once(path, lambda: write_pth(path, chosen))

    return written


@pytest.fixture(scope="session")
def engine(
    planted: Callable[[str], Path], shared: Path
) -> Callable[[str, dict[str, Any]], world.Engine]:
    """`engine(case, options)`: a case's weights, in a library that all cases share."""

    def loaded(case: str, options: dict[str, Any]) -> world.Engine:
        weights = shared / "converted7" / case
        build: dict[str, Any] = {"target": "llvm", "quantization": "q0f16", "stock": False}
        once(weights, lambda: world.build(planted(case), output=weights, library=False, **build))
        (params,) = weights.iterdir()
        output = shared / "libraries7" / "-".join(map(str, options.values()))
        once(
            output,
            lambda: world.build(
                planted("none"),
                output=output,
                weights=False,
                float32_keys=False,
                **build,
                **options,
            ),
        )
        (library,) = output.glob("*/*.so")
        return world.load(params, "cpu", model_lib=library)

    return loaded


Engines = Callable[[str, dict[str, Any]], world.Engine]


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


@pytest.mark.parametrize("case", CASES)
def test_float32_in_the_block_cures_it(engine: Engines, case: str) -> None:
    """In true float16, with every product's result rounded to it, keys among them."""
    layer, other = CASES[case].layer, 1 - CASES[case].layer
    right = _logits(engine(case, {"compute_dtype": "float32"}))
    assert np.isfinite(right).all()
    narrow = {"compute_dtype": "float16"}
    assert _error(_logits(engine(case, {**narrow, "fp32_layers": "none"})), right) > 0.2
    assert _error(_logits(engine(case, {**narrow, "fp32_layers": str(other)})), right) > 0.2
    assert _error(_logits(engine(case, {**narrow, "fp32_layers": str(layer)})), right) < 0.01


@pytest.mark.parametrize("case", CASES)
def test_found_where_it_is(planted: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    layer, by_keys = CASES[case].layer, CASES[case].by_keys
    why = f"{CASES[case].operation} gives infinity"
    report = inspect(
        open_subject(planted(case), quantization="q0f16", float32_keys=False), texts=TEXTS
    )
    assert [need.block for need in report.needed] == [layer]
    assert report.needed[0].why.startswith(why)
    assert not report.bad_logits
    for keys in (False, True):
        artifact = world.build(
            planted(case),
            target="llvm",
            quantization="q0f16",
            output=tmp_path / str(keys),
            fp32_layers="auto",
            float32_keys=keys,
            library=False,
        )
        cured = keys and by_keys
        assert artifact.fp32_layers == (() if cured else (layer,))
        config = json.loads((artifact.params / CHAT_CONFIG).read_text())["model_config"]
        assert config["fp32_layers"] == ([] if cured else [layer])
        assert cured or config["fp32_reasons"][0].startswith(f"block {layer}: {why}")


def test_a_healthy_model_needs_none(planted: Callable[[str], Path]) -> None:
    report = inspect(open_subject(planted("none"), quantization="q0f16"), texts=TEXTS)
    assert report.recommended == ()
    assert not report.needed
