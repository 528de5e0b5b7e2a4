"""Names of TVM's that moved between the releases that this package supports, 0.26 and 0.27."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx

StringImm: Any = relax.StringImm if hasattr(relax, "StringImm") else tvm.ir.StringImm
SBlock: Any = s_tir.SBlock if hasattr(s_tir, "SBlock") else tirx.SBlock
SBlockRealize: Any = s_tir.SBlockRealize if hasattr(s_tir, "SBlock") else tirx.SBlockRealize


def name_of(gvar: Any) -> str:
    """The name of a global variable."""
    return str(gvar.name if hasattr(gvar, "name") else gvar.name_hint)


def with_type(call: Any, like: Any) -> Any:
    """A call of a function, with the type of another expression: pointers have one since 0.27."""
    if not hasattr(call, "ty"):
        return call
    return tvm.ir.Call(call.op, list(call.args), ret_ty=like.ty)
