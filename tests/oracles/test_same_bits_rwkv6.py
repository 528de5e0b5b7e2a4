"""RWKV-6's logits and states are the same to the bit however a text is read, in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.same_bits import OF_FORMATS, check

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", OF_FORMATS)
def test_every_way_gives_the_same_bits(name: str, small: Callable[..., Path]) -> None:
    check(small, 6, OF_FORMATS[name])
