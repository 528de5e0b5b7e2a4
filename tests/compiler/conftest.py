from __future__ import annotations

from pathlib import Path

import pytest
from lowering import PREFIX, Lowered, lower

from mlc_rwkv_world.compiler import library


@pytest.fixture(scope="session")
def lowered() -> Lowered:
    return lower()


@pytest.fixture(scope="session")
def system_lowered() -> Lowered:
    return lower(PREFIX)


@pytest.fixture(scope="session")
def linked(lowered: Lowered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's library."""
    path = tmp_path_factory.mktemp("library") / f"small{library.ending(lowered.target, False)}"
    assert library.write(lowered.module, lowered.target, path) == [path]
    return path
