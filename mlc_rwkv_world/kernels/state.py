"""Reading a row of the state tensor [B, L, R, D], and writing one in place."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.channels import Channels
from mlc_rwkv_world.kernels.signature import Signature


def state_get(sig: Signature) -> tirx.PrimFunc:
    """(state, layer, row) -> [B, D]."""
    layers, rows, width = map(int, sig.args[0].shape[1:])
    grid = Channels(width, sig, sig.args[0].shape[0])
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(var_state: T.handle, layer: T.int64, row: T.int64, var_out: T.handle) -> None:
        # Opaque: the tensor is written in place later, so that no read of it may be moved.
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        batch = T.int64()
        state = T.match_buffer(var_state, (batch, layers, rows, width), "float32")
        out = T.match_buffer(var_out, (batch, width), "float32")
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = grid.row(piece)
                c = grid.channel(piece, thread)
                for i in T.vectorized(lanes):
                    out[s, c + i] = state[s, layer, row, c + i]

    return kernel


def state_set(sig: Signature) -> tirx.PrimFunc:
    """(state, layer, row, value [B, D]): writes the row of `state`."""
    layers, rows, width = map(int, sig.args[0].shape[1:])
    grid = Channels(width, sig, sig.args[0].shape[0])
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(var_state: T.handle, layer: T.int64, row: T.int64, var_value: T.handle) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        batch = T.int64()
        state = T.match_buffer(var_state, (batch, layers, rows, width), "float32")
        value = T.match_buffer(var_value, (batch, width), "float32")
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = grid.row(piece)
                c = grid.channel(piece, thread)
                for i in T.vectorized(lanes):
                    state[s, layer, row, c + i] = value[s, c + i]

    return kernel
