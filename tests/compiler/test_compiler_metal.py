"""Whole models in Metal's own source, run by a stand-in, against the reference in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated_model import BOUNDS, exact, hold, random_parameters, run, unquantized
from support import metal_emulation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        metal_emulation.missing() is not None, reason=metal_emulation.missing() or ""
    ),
]

WIDTH = 1024


@pytest.fixture(scope="module")
def device(shared: Path) -> metal_emulation.Device:
    return metal_emulation.install(shared)


# RWKV-5 and 7 in float32 were run by hand.
@pytest.mark.parametrize(
    "version, dtype", [*((v, "float16") for v in (4, 5, 6, 7)), (4, "float32"), (6, "float32")]
)
def test_a_block_of_each_version(device: metal_emulation.Device, version: int, dtype: str) -> None:
    """Prompts together, a longer one, a batch's step and one alone. Products of several rows in
    float16 run on simdgroup matrices, others do not.
    """
    model = unquantized(version, WIDTH, dtype, layers=1)
    weights = random_parameters(model)
    device.launches.clear()
    device.sources.clear()
    found, _ = run(model, "metal -host=llvm", weights, brief=True)
    products = {name for name in device.launches if "linear" in name}
    on_matrices = {name for name in products if "simdgroup_multiply" in device.sources[name]}
    if dtype == "float16":
        assert len(on_matrices) > 5 and len(products - on_matrices) > 5
    else:
        assert not on_matrices and len(products) > 10
    hold(found, exact(model, weights, brief=True), BOUNDS[dtype])
