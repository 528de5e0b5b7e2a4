from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from avx512 import emulate
from compiling import AVX512, TARGETS, Case, Kernels


@pytest.fixture(autouse=True)
def _two_threads(two_threads: None) -> None:
    """Kernels divide their work."""


@pytest.fixture(scope="module", params=TARGETS)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Mapping[str, Case]], Kernels]]:
    """`compiled(cases)`: kernels for this CPU, and for older ones that it can stand in for."""
    # A library of a name that has been loaded would not be loaded again.
    with pytest.MonkeyPatch.context() as patch:
        if request.param == AVX512:
            emulate(patch)
        yield lambda cases: Kernels(
            cases, TARGETS[request.param], tmp_path_factory.mktemp("kernels")
        )
