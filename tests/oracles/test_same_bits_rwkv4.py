"""RWKV-4's logits and states are the same to the bit however a text is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import checkpoints
from support.once import once
from support.same_bits import OF_CPUS, OF_FORMATS, check, check_folder

import mlc_rwkv_world as world

pytestmark = pytest.mark.slow

CASES = OF_FORMATS | OF_CPUS


@pytest.mark.parametrize("name", CASES)
def test_every_way_gives_the_same_bits(name: str, small: Callable[..., Path]) -> None:
    check(small, 4, CASES[name])


def test_rows_that_are_no_whole_blocks(shared: Path) -> None:
    """Of 32, which have no kernels of their own: a random RWKV-4 of 72 channels."""
    source, output = shared / "odd.pth", shared / "odd"

    def build() -> None:
        checkpoints.write_pth(source, checkpoints.random_world(2, 72))
        world.build(source, target="llvm", quantization="q0f16", output=output, stock=False)

    (folder,) = once(output, build).iterdir()
    check_folder(folder)
