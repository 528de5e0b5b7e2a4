"""The trained models, and a server for each file of tests that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process import Server

from mlc_rwkv_world.runtime import Engine, load


@pytest.fixture(scope="session")
def engine(demo_artifact: Callable[[str], Path]) -> Engine:
    return load(demo_artifact("q0f32"), "cpu")


@pytest.fixture(scope="session")
def thinker(demo7_artifact: Callable[[str], Path]) -> Engine:
    """The trained RWKV-7, which can think before it answers."""
    return load(demo7_artifact("q0f32"), "cpu")


@pytest.fixture(scope="session")
def server(demo_artifact: Callable[[str], Path]) -> Iterator[Server]:
    """A server of the trained RWKV-4, which all tests share: it has to be as before after each."""
    with Server(demo_artifact("q0f32"), "--name", "demo", "--slots", "8") as running:
        yield running


@pytest.fixture(scope="session")
def thinking_server(demo7_artifact: Callable[[str], Path]) -> Iterator[Server]:
    """A server of the trained RWKV-7."""
    with Server(demo7_artifact("q0f32"), "--name", "thinker", "--allow-tuned-states") as running:
        yield running
