"""Products sum in float32 on every target."""

from __future__ import annotations

from pathlib import Path

import pytest
from sums import TARGETS, TYPES, measured

pytestmark = pytest.mark.slow

WIDTH = 1024
# Sums in float16 are off by 5e-3 here; see docs/numerics.md.
BOUND = 1e-6


@pytest.mark.parametrize("kind", TARGETS)
def test_sums_are_float32(kind: str, shared: Path) -> None:
    found = measured(kind, shared, (WIDTH,))
    if isinstance(found, str):
        pytest.skip(found)
    errors = {(dtype, rows): e for dtype in TYPES for rows, e in found[dtype, WIDTH].items()}
    assert {what: error for what, error in errors.items() if not 0 < error < BOUND} == {}
