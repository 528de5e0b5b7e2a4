"""GPU schedules: ours for products on Metal; dlight's for others, reductions and what is left."""

from __future__ import annotations

from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule

from mlc_rwkv_world.compiler.passes.matmul_metal import MatmulMetal
from mlc_rwkv_world.tvm_script import quick_parsing


def rules() -> list[ScheduleRule]:
    """In the order in which a kernel is offered to them."""
    with quick_parsing():
        # `Matmul` asks for TVM's tensor intrinsics, hundreds of functions in TVMScript.
        import tvm.s_tir.tensor_intrin  # noqa: F401
    return [
        MatmulMetal(),
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    ]
