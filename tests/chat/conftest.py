"""The trained model, loaded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_rwkv_world.runtime import Engine, load


@pytest.fixture(scope="session")
def engine(demo_artifact: Callable[[str], Path]) -> Engine:
    return load(demo_artifact("q0f32"), "cpu")
