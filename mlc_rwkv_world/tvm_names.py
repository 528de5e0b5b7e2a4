"""Names of TVM's that moved between the releases that this package supports, 0.26 and 0.27."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

StringImm: Any = relax.StringImm if hasattr(relax, "StringImm") else tvm.ir.StringImm
SBlock: Any = s_tir.SBlock if hasattr(s_tir, "SBlock") else tirx.SBlock
SBlockRealize: Any = s_tir.SBlockRealize if hasattr(s_tir, "SBlock") else tirx.SBlockRealize
_Constant: Any = relax.Constant if hasattr(relax, "Constant") else tvm.ir.GenericConst


def name_of(gvar: Any) -> str:
    """The name of a global variable."""
    return str(gvar.name if hasattr(gvar, "name") else gvar.name_hint)


def constant_value(expr: Any) -> Any:
    """The tensor of a Relax constant; None for any other expression."""
    if not isinstance(expr, _Constant):
        return None
    return expr.data if hasattr(expr, "data") else expr.value


def keep_parameters(func: Any, wanted: Callable[[str], bool]) -> Any:
    """`func` with only those of its parameters whose names are `wanted`."""
    if not hasattr(func, "buffer_map"):
        kept = [param for param in func.params if wanted(param.name)]
        return tirx.PrimFunc(kept, func.body, func.ret_type, func.attrs, func.span)
    # A tensor's parameter is a handle there, and has another name.
    buffers = {param: buffer for param, buffer in func.buffer_map.items() if wanted(buffer.name)}
    kept = [param for param in func.params if param in buffers or param not in func.buffer_map]
    return tirx.PrimFunc(kept, func.body, func.ret_type, buffers, func.attrs, func.span)
