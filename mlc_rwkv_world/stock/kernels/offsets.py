"""Where each sequence of a ragged batch begins, int32 [B + 1]."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from mlc_rwkv_world.kernels.signature import Signature


def whole_offsets(sig: Signature) -> tirx.PrimFunc:
    """(x [T, D]) -> [0, T]."""
    rows = tirx.Var("seq_len", "int64")
    x = te.placeholder((rows, sig.args[0].static(1)), sig.args[0].dtype, "x")
    out = te.compute(
        (2,), lambda i: tirx.Select(i == 0, tirx.const(0, "int32"), rows.astype("int32")), "offsets"
    )
    return te.create_prim_func([x, out]).with_attr("op_pattern", 8)


def offsets_from_positions(sig: Signature) -> tirx.PrimFunc:
    """(position of each sequence's last row, int32 [B]) -> [0, position + 1, ...]."""
    count = tirx.Var("batch", "int64")
    positions = te.placeholder((count,), "int32", "positions")

    def offset(i: Any) -> Any:
        return tirx.if_then_else(i == 0, tirx.const(0, "int32"), positions[i - 1] + 1)

    out = te.compute((count + 1,), offset, "offsets")
    return te.create_prim_func([positions, out]).with_attr("op_pattern", 8)
