"""The pool of states [S, L, R, D], float32: which slot a sequence reads, and which it writes.

`slots` int32 [B, 2] holds both numbers of each of B sequences. They differ, so that what a call was
given stays as it was; or are the same, where nobody needs that. A row is read before it is written.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.channels import Channels
from mlc_rwkv_world.kernels.signature import Signature


def read_slot(slots: Any, sequence: Any) -> Any:
    """The slot that holds the state of a sequence."""
    return T.cast(slots[sequence, 0], "int64")


def write_slot(slots: Any, sequence: Any) -> Any:
    """The slot that its new state goes to."""
    return T.cast(slots[sequence, 1], "int64")


def state_get(sig: Signature) -> tirx.PrimFunc:
    """(pool, slots, layer, row) -> [B, D], or some rows [B, N, D] from `row` on."""
    return _rows(sig, sig.outs[0].shape[1:], write=False)


def state_set(sig: Signature) -> tirx.PrimFunc:
    """(pool, slots, layer, row, value [B, D] or [B, N, D]): writes rows of the new states."""
    return _rows(sig, sig.args[2].shape[1:], write=True)


def _rows(sig: Signature, shape: tuple[Any, ...], *, write: bool) -> tirx.PrimFunc:
    layers, rows, width = map(int, sig.args[0].shape[1:])
    height, single = prod(map(int, shape[:-1])), len(shape) == 1
    batches = sig.args[1].shape[0]
    grid = Channels(width, sig, batches * height if isinstance(batches, int) else None)
    lanes, blocks = grid.lanes, height * grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(
        var_pool: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        row: T.int64,
        var_value: T.handle,
    ) -> None:
        batch, places = T.int64(), T.int64()
        pool = T.match_buffer(var_pool, (places, layers, rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        value = T.match_buffer(var_value, (batch, *shape), "float32")
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(T.truncdiv(grid.row(piece), T.int64(height)))
                n = T.meta_var(T.truncmod(grid.row(piece), T.int64(height)))
                c = T.meta_var(grid.channel(piece, thread))
                for i in T.vectorized(lanes):
                    if write and single:
                        pool[write_slot(slots, s), layer, row, c + i] = value[s, c + i]
                    elif write:
                        pool[write_slot(slots, s), layer, row + n, c + i] = value[s, n, c + i]
                    elif single:
                        value[s, c + i] = pool[read_slot(slots, s), layer, row, c + i]
                    else:
                        value[s, n, c + i] = pool[read_slot(slots, s), layer, row + n, c + i]

    return kernel


def slots_at_hand(sig: Signature) -> tirx.PrimFunc:
    """(slots) -> a copy, in the memory that a function's temporaries have, on a GPU."""

    @T.prim_func(s_tir=True)
    def kernel(var_slots: T.handle, var_copy: T.handle) -> None:
        batch = T.int64()
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        copy = T.match_buffer(var_copy, (batch, 2), "int32")
        for sequence in T.thread_binding(batch, thread="blockIdx.x"):
            for which in T.thread_binding(2, thread="threadIdx.x"):
                copy[sequence, which] = slots[sequence, which]

    return kernel
