"""Recognizing the calls that an export makes."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.ir import Op

from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_names import StringImm

_DPS_PACKED = Op.get("relax.call_dps_packed")
_PURE_PACKED = Op.get("relax.call_pure_packed")


def packed_name(call: relax.Expr) -> str | None:
    """The name of the packed function that a call is of, else None."""
    if isinstance(call, relax.Call) and call.op in (_DPS_PACKED, _PURE_PACKED):
        callee = call.args[0]
        if isinstance(callee, relax.ExternFunc):
            return str(callee.global_symbol)
    return None


def stored_in(args: Sequence[relax.Expr]) -> tuple[list[relax.Expr], list[Stored]]:
    """The arguments of a named operation, and how the weight among them lies, if there is one."""
    tensors = [arg for arg in args if not isinstance(arg, StringImm)]
    texts = [str(arg.value) for arg in args if isinstance(arg, StringImm)]
    return tensors, list(map(Stored.parse, texts))
