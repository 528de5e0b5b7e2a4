"""Several tensors as one: for targets whose kernels can bind few."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.channels import Channels
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

_NAMES = tuple("abcdef")


def stack(sig: Signature) -> tirx.PrimFunc:
    """(up to six tensors [T, D], float32) -> [how many, T, D]."""
    count, width = len(sig.args), sig.args[0].static(1)
    grid = Channels(width, sig)
    lanes, blocks = grid.lanes, grid.blocks

    @T.prim_func(s_tir=True)
    def kernel(
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
        var_out: T.handle,
    ) -> None:
        rows = T.int64()
        a = T.match_buffer(var_a, (rows, width), "float32")
        b = T.match_buffer(var_b, (rows, width), "float32")
        c = T.match_buffer(var_c, (rows, width), "float32")
        d = T.match_buffer(var_d, (rows, width), "float32")
        e = T.match_buffer(var_e, (rows, width), "float32")
        f = T.match_buffer(var_f, (rows, width), "float32")
        out = T.match_buffer(var_out, (count, rows, width), "float32")

        @T.inline
        def copy(number, source, row, first):  # type: ignore[no-untyped-def]
            if number < count:
                for i in T.vectorized(lanes):
                    out[number, row, first + i] = source[row, first + i]

        for piece in grid.outer(rows * blocks):
            for thread in grid.threads():
                row = T.meta_var(grid.row(piece))
                first = T.meta_var(grid.channel(piece, thread))
                copy(0, a, row, first)
                copy(1, b, row, first)
                copy(2, c, row, first)
                copy(3, d, row, first)
                copy(4, e, row, first)
                copy(5, f, row, first)

    return without(kernel, *_NAMES[count:])
