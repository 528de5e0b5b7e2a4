"""What every kernel that is written as loops has in common, said once."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.tvm_names import SBlock, SBlockRealize

# It is no operator that others are fused with (8 is TVM's kOpaque): some write into what they are
# given, so that no read of it may be moved. No two of its buffers overlap, and its loops are those
# that are to run.
_ATTRIBUTES = {"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1}


def finished(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel as Relax's passes take it, which want a block around every body.

    One of tensor expressions has that already, and stays as it is, to be fused and scheduled.
    """
    if isinstance(func.body, SBlockRealize):
        return func
    block = SBlock([], [], [], "root", func.body)
    return func.with_body(SBlockRealize([], True, block)).with_attrs(_ATTRIBUTES)
