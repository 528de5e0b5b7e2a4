from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from compiling import TARGETS, Case, Kernels


@pytest.fixture(scope="module", params=TARGETS)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Mapping[str, Case]], Kernels]:
    """`compiled(cases)`: kernels for this CPU, and for older ones that it can stand in for."""
    # A library of a name that has been loaded would not be loaded again.
    return lambda cases: Kernels(cases, TARGETS[request.param], tmp_path_factory.mktemp("kernels"))
