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
