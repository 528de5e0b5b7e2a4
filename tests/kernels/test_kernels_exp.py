"""The polynomial e^x of CPU kernels against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from compiling import Case, Kernels

from mlc_rwkv_world.kernels.cpu import exp as exp_cpu

CASES: dict[str, Case] = {
    "exp": (exp_cpu.exp_kernel, [("n", "float32")], [("n", "float32")]),
}
# Three units in the last place: of the reduction, the series and the result.
RATIO = 3e-7


def test_exp(compiled: Callable[[Mapping[str, Case]], Kernels]) -> None:
    kernels = compiled(CASES)
    x = np.linspace(-100, 95, 1 << 16).astype(np.float32)
    (y,) = kernels("exp", x, outs=[(x.shape, "float32")])
    exact = exp_cpu.reference(x.astype(np.float64))
    assert (np.abs(y - exact) / exact).max() < RATIO
    odd = np.zeros(16, np.float32)
    odd[1:4] = np.nan, -1e30, 1e30
    (y,) = kernels("exp", odd, outs=[(odd.shape, "float32")])
    assert y[0] == 1
    assert np.isnan(y[1])
    assert 0 < y[2] < 2e-38
    assert 1e38 < y[3] < np.inf
