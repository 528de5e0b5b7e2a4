"""Reading a row of the state tensor [B, L, R, D], and writing one in place."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.channels import Channels
from mlc_rwkv_world.kernels.signature import Signature, TensorType


def state_get(sig: Signature) -> tirx.PrimFunc:
    """(state, layer, row) -> [B, D]."""
    return _row(sig, write=False)


def state_set(sig: Signature) -> tirx.PrimFunc:
    """(state, layer, row, value [B, D]): writes the row of `state`."""
    return _row(sig, write=True)


def _row(sig: Signature, *, write: bool) -> tirx.PrimFunc:
    layers, rows, width = map(int, sig.args[0].shape[1:])
    grid = Channels(width, sig, sig.args[0].shape[0])
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(var_state: T.handle, layer: T.int64, row: T.int64, var_value: T.handle) -> None:
        # Opaque: the tensor is written in place later, so that no read of it may be moved.
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        batch = T.int64()
        state = T.match_buffer(var_state, (batch, layers, rows, width), "float32")
        value = T.match_buffer(var_value, (batch, width), "float32")
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                for i in T.vectorized(lanes):
                    if write:
                        state[s, layer, row, c + i] = value[s, c + i]
                    else:
                        value[s, c + i] = state[s, layer, row, c + i]

    return kernel


def state_load(sig: Signature) -> tirx.PrimFunc:
    """(state [B, L, R, D]) -> a copy, on a GPU."""
    return _copy(sig, sig.args[0])


def state_store(sig: Signature) -> tirx.PrimFunc:
    """(state, copy): the state becomes what the copy is, on a GPU."""
    return _copy(sig, sig.args[1], backwards=True)


def _copy(sig: Signature, kind: TensorType, backwards: bool = False) -> tirx.PrimFunc:
    """(a, b): a is copied to b, or b to a."""
    layers, rows, width = map(int, kind.shape[1:])
    grid = Channels(width, sig)
    each = layers * rows

    @T.prim_func(s_tir=True)
    def kernel(var_a: T.handle, var_b: T.handle) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        batch = T.int64()
        a = T.match_buffer(var_a, (batch, layers, rows, width), "float32")
        b = T.match_buffer(var_b, (batch, layers, rows, width), "float32")
        for piece in grid.outer(batch * (each * grid.blocks)):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                if backwards:
                    a[s // each, s // rows % layers, s % rows, c] = b[
                        s // each, s // rows % layers, s % rows, c
                    ]
                else:
                    b[s // each, s // rows % layers, s % rows, c] = a[
                        s // each, s // rows % layers, s % rows, c
                    ]

    return kernel
