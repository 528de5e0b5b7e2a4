"""RWKV-7's logits and states are the same to the bit however a text is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.same_bits import OF_CPUS, OF_FORMATS, check

pytestmark = pytest.mark.slow

CASES = OF_FORMATS | OF_CPUS


@pytest.mark.parametrize("name", CASES)
def test_every_way_gives_the_same_bits(name: str, small: Callable[..., Path]) -> None:
    check(small, 7, CASES[name])
