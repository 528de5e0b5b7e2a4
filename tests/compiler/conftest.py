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
def whole() -> Lowered:
    """With stock's functions, as a build makes it by itself."""
    return lower(stock=True)


@pytest.fixture(scope="session")
def linked(lowered: Lowered, shared: Path) -> Path:
    """The small model's library."""
    return _linked(lowered, shared / "compiler" / "small")


@pytest.fixture(scope="session")
def whole_linked(whole: Lowered, shared: Path) -> Path:
    """The same with stock's functions."""
    return _linked(whole, shared / "compiler" / "whole")


def _linked(lowered: Lowered, stem: Path) -> Path:
    path = stem.with_suffix(library.ending(lowered.target, False))

    def make() -> None:
        assert library.write(lowered.module, lowered.target, path) == [path]

    return once(path, make)
