"""GPU schedules: ours for products on Metal; dlight's for others, reductions and what is left."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from mlc_rwkv_world.compiler.passes.matmul_metal import MatmulMetal
from mlc_rwkv_world.tvm_script import quick_parsing

# Rows of a matrix that dlight's widest tile for one row of x takes.
_MOST_ROWS = 16


class _FilledGEMV(dlight.gpu.GEMV):  # type: ignore[misc]
    """dlight's rule where its tiles are filled.

    A block whose last rows are beyond the result writes them all the same: TVM's lowering of the
    reduction over threads loses the condition.
    """

    def sch_inner_reduction(self, sch: Any, target: Target, block: Any, *rest: Any) -> Any:
        """None where another rule is to take the product."""
        rows = sch.get(sch.get_loops(block)[1]).extent
        if not isinstance(rows, tirx.IntImm) or int(rows) % _MOST_ROWS:
            return None
        return super().sch_inner_reduction(sch, target, block, *rest)


def rules() -> list[ScheduleRule]:
    """In the order in which a kernel is offered to them."""
    with quick_parsing():
        # `Matmul` asks for TVM's tensor intrinsics, hundreds of functions in TVMScript.
        import tvm.s_tir.tensor_intrin  # noqa: F401
    return [
        MatmulMetal(),
        dlight.gpu.Matmul(),
        _FilledGEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    ]
