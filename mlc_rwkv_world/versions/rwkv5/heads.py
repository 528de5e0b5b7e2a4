"""The normalization of RWKV-5's and 6's heads, on every target, in float32."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.heads import Heads
from mlc_rwkv_world.kernels.signature import Signature


def head_norm(sig: Signature, size: int, eps: float) -> tirx.PrimFunc:
    """(y [T, D], weight, bias [D]) -> [T, D], for heads of `size`: see `formulas.head_norm`."""
    over = Heads(sig, size)
    width, heads, lanes, steps, scope = over.width, over.heads, over.lanes, over.steps, over.scope
    moments = over.moments(eps)

    @T.prim_func(s_tir=True)
    def kernel(
        var_y: T.handle,
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        var_out: T.handle,
    ) -> None:
        rows = T.int64()
        y = T.match_buffer(var_y, (rows, width), "float32")
        out = T.match_buffer(var_out, (rows, width), "float32")
        for t in over.tokens(rows):
            for head in over.each(heads):
                base = T.meta_var(T.cast(head, "int64") * T.int64(size))
                part = T.alloc_buffer((lanes,), "float32", scope=scope)
                stat = T.alloc_buffer((2,), "float32", scope=scope)
                moments(y, t, base, part, stat)
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        out[t, c] = (y[t, c] - stat[0]) * stat[1] * weight[c] + bias[c]

    return kernel
