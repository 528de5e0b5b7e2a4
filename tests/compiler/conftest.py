from __future__ import annotations

from pathlib import Path

import pytest
from lowering import PREFIX, Lowered, lower
from support.once import once

from mlc_rwkv_world.compiler import library


@pytest.fixture(scope="session")
def lowered() -> Lowered:
    return lower()


@pytest.fixture(scope="session")
def system_lowered() -> Lowered:
    return lower(PREFIX)


@pytest.fixture(scope="session")
def linked(lowered: Lowered, shared: Path) -> Path:
    """The small model's library."""
    path = shared / "compiler" / f"small{library.ending(lowered.target, False)}"

    def make() -> None:
        assert library.write(lowered.module, lowered.target, path) == [path]

    return once(path, make)
