"""The row before each row, and the last row, of sequences laid one after another."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.common.channels import Channels
from mlc_rwkv_world.kernels.signature import Signature

reference = formulas.token_shift


def token_shift(sig: Signature) -> tirx.PrimFunc:
    """(x, last, offsets) -> shifted."""
    width, dtype = sig.args[0].static(1), sig.args[0].dtype
    grid = Channels(width, sig)
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle, var_last: T.handle, var_offsets: T.handle, var_out: T.handle
    ) -> None:
        seq_len, batch = T.int64(), T.int64()
        x = T.match_buffer(var_x, (seq_len, width), dtype)
        last = T.match_buffer(var_last, (batch, width), dtype)
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        out = T.match_buffer(var_out, (seq_len, width), dtype)
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                begin: T.let[T.int64] = T.cast(offsets[s], "int64")
                for i in T.vectorized(lanes):
                    out[begin, c + i] = last[s, c + i]
                for step in range(T.cast(offsets[s + 1], "int64") - begin - T.int64(1)):
                    for i in T.vectorized(lanes):
                        out[begin + step + T.int64(1), c + i] = x[begin + step, c + i]

    return kernel


def last_token(sig: Signature) -> tirx.PrimFunc:
    """(x, offsets) -> the last row of each sequence."""
    width, dtype = sig.args[0].static(1), sig.args[0].dtype
    grid = Channels(width, sig, sig.outs[0].shape[0])
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, var_offsets: T.handle, var_out: T.handle) -> None:
        seq_len, batch = T.int64(), T.int64()
        x = T.match_buffer(var_x, (seq_len, width), dtype)
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        out = T.match_buffer(var_out, (batch, width), dtype)
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                end: T.let[T.int64] = T.cast(offsets[s + 1], "int64") - T.int64(1)
                for i in T.vectorized(lanes):
                    out[s, c + i] = x[end, c + i]

    return kernel
