"""The operations that the engine's functions alone consist of, and their kernels."""

from __future__ import annotations

from collections.abc import Mapping

from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.table import Kernel
from mlc_rwkv_world.model.operations import named
from mlc_rwkv_world.stock.kernels import offsets


def whole_offsets(x: Tensor) -> Tensor:
    """int32 [2]: all rows of x [T, D] as one sequence."""
    return named("whole_offsets", [x], ((2,), "int32"))


def offsets_from_positions(positions: Tensor) -> Tensor:
    """int32 [B + 1] from the position of each sequence's last row, int32 [B]."""
    count = positions.shape[0]
    return named("offsets_from_positions", [positions], ((count + 1,), "int32"))


KERNELS: Mapping[str, Kernel] = {
    "offsets_from_positions": offsets.offsets_from_positions,
    "whole_offsets": offsets.whole_offsets,
}
