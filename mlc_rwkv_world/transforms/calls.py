"""Recognizing the calls that an export makes."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Op

_DPS_PACKED = Op.get("relax.call_dps_packed")
_PURE_PACKED = Op.get("relax.call_pure_packed")


def packed_name(call: relax.Expr) -> str | None:
    """The name of the packed function that a call is of, else None."""
    if isinstance(call, relax.Call) and call.op in (_DPS_PACKED, _PURE_PACKED):
        callee = call.args[0]
        if isinstance(callee, relax.ExternFunc):
            return str(callee.global_symbol)
    return None
