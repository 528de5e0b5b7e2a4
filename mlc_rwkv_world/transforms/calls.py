"""Recognizing the calls that an export makes, and what calls of kernels need."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.ir import Op

from mlc_rwkv_world.tvm_names import SBlock, SBlockRealize

_DPS_PACKED = Op.get("relax.call_dps_packed")
_PURE_PACKED = Op.get("relax.call_pure_packed")


def packed_name(call: relax.Expr) -> str | None:
    """The name of the packed function that a call is of, else None."""
    if isinstance(call, relax.Call) and call.op in (_DPS_PACKED, _PURE_PACKED):
        callee = call.args[0]
        if isinstance(callee, relax.ExternFunc):
            return str(callee.global_symbol)
    return None


def with_root_block(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Puts a kernel's bare loops into the block that Relax's passes expect every body to be."""
    if isinstance(func.body, SBlockRealize):
        return func
    block = SBlock([], [], [], "root", func.body)
    return func.with_body(SBlockRealize([], True, block))
