"""Tuned states of RWKV-5, 6 and 7, as BlinkDL's `rwkv` begins from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.peers import rwkv7_logits, rwkv_logits

import mlc_rwkv_world as world
from mlc_rwkv_world.errors import StateError

pytestmark = pytest.mark.slow

WIDTH, SIZE = 128, 64


def write_tuned(path: Path, layers: int, heads: int) -> Path:
    rng = np.random.default_rng(5)
    shape = (heads, SIZE, SIZE)
    names = [f"blocks.{i}.att.time_state" for i in range(layers)]
    return checkpoints.write_pth(
        path, {name: rng.normal(0, 0.3, shape).astype(np.float32) for name in names}
    )


def test_logits_after_a_tuned_state(tmp_path: Path, small_library: Callable[..., Path]) -> None:
    """Every value counts, in its place: matrices are not symmetric, heads and blocks differ."""
    pth = checkpoints.write_pth(tmp_path / "rwkv7-g1a-random.pth", checkpoints.random_small(7))
    tuned = write_tuned(tmp_path / "tuned.pth", 4, WIDTH // SIZE)
    artifact = world.build(
        pth,
        target="llvm",
        quantization="q0f32",
        output=tmp_path / "dist",
        stock=False,
        reuse_lib=small_library(7, "q0f32"),
    )
    assert str(artifact.template) == "g1, thinking off"
    engine = world.load(artifact.folder, "cpu")
    assert str(world.Chat(engine).template) == "g1, thinking off"
    ids = [int(i) for i in np.random.default_rng(1).integers(1, 65530, 12)]
    state = engine.new_state()
    state.load(tuned)
    ours = np.stack([engine.decode(token, state) for token in ids])
    theirs, plain = rwkv7_logits(pth, ids, tuned=tuned), rwkv7_logits(pth, ids)
    tolerance = 1e-4 * max(1.0, float(np.abs(theirs).max()))
    assert np.abs(ours - theirs).max() <= tolerance
    assert np.abs(plain - theirs).max() > 100 * tolerance
    for layers, heads in ((1, 2), (4, 3)):
        with pytest.raises(StateError, match="another model's"):
            state.load(write_tuned(tmp_path / "other.pth", layers, heads))


@pytest.mark.parametrize("version", ["5.2", "6.0"])
def test_a_state_inside_a_checkpoint(
    tmp_path: Path, small_library: Callable[..., Path], version: str
) -> None:
    """`rwkv` always begins from it; here a conversation does that is told to."""
    tensors = checkpoints.random_rwkv5(2, WIDTH, version=version, tuned=True)
    pth = checkpoints.write_pth(tmp_path / "model.pth", tensors)
    artifact = world.build(
        pth,
        target="llvm",
        quantization="q0f32",
        output=tmp_path / "dist",
        stock=False,
        reuse_lib=small_library(int(float(version)), "q0f32"),
    )
    assert any("holds a state that it was tuned with" in note for note in artifact.notes)
    engine = world.load(artifact.folder, "cpu")
    ids = [int(i) for i in np.random.default_rng(1).integers(1, 65530, 12)]
    theirs = rwkv_logits(pth, ids)
    tolerance = 1e-4 * max(1.0, float(np.abs(theirs).max()))
    state = engine.new_state()
    plain = np.stack([engine.decode(token, state) for token in ids])
    state = engine.new_state()
    state.load(pth)
    ours = np.stack([engine.decode(token, state) for token in ids])
    assert np.abs(ours - theirs).max() <= tolerance
    assert np.abs(plain - theirs).max() > 100 * tolerance
