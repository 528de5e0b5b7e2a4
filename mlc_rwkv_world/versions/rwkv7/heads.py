"""What RWKV-7 does with each head of a token before and after the recurrence, in float32.

Two kernels, for every target.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.heads import Heads
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv7.reference import LEAST_NORM


def keys(sig: Signature, size: int) -> tirx.PrimFunc:
    """(k, a [T, D], k_k, k_a [D]) -> three [T, D], for heads of `size`: see `reference.keys`."""
    over = Heads(sig, size)
    width, heads, lanes, steps, scope = over.width, over.heads, over.lanes, over.steps, over.scope

    @T.prim_func(s_tir=True)
    def kernel(
        var_k: T.handle,
        var_a: T.handle,
        k_k: T.Buffer((width,), "float32"),
        k_a: T.Buffer((width,), "float32"),
        var_written: T.handle,
        var_removed: T.handle,
        var_replaced: T.handle,
    ) -> None:
        rows = T.int64()
        k = T.match_buffer(var_k, (rows, width), "float32")
        a = T.match_buffer(var_a, (rows, width), "float32")
        written = T.match_buffer(var_written, (rows, width), "float32")
        removed = T.match_buffer(var_removed, (rows, width), "float32")
        replaced = T.match_buffer(var_replaced, (rows, width), "float32")
        for t in over.tokens(rows):
            for head in over.each(heads):
                base = T.meta_var(T.cast(head, "int64") * T.int64(size))
                part = T.alloc_buffer((lanes,), "float32", scope=scope)
                stat = T.alloc_buffer((1,), "float32", scope=scope)
                for i in T.vectorized(lanes):
                    part[i] = T.float32(0)
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        part[i] = part[i] + k[t, c] * k_k[c] * (k[t, c] * k_k[c])
                stat[0] = T.float32(0)
                for i in range(lanes):
                    stat[0] = stat[0] + part[i]
                stat[0] = T.max(T.sqrt(stat[0]), T.float32(LEAST_NORM))
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        removed[t, c] = k[t, c] * k_k[c] / stat[0]
                        replaced[t, c] = k[t, c] * k_k[c] / stat[0] * a[t, c]
                        written[t, c] = k[t, c] * (T.float32(1) + (a[t, c] - T.float32(1)) * k_a[c])

    return kernel


def head_norm(sig: Signature, eps: float) -> tirx.PrimFunc:
    """(y, r, k, v [T, D], r_k [H, N], weight, bias [D]) -> [T, D]: see `reference.head_norm`."""
    size = sig.args[4].static(1)
    over = Heads(sig, size)
    width, heads, lanes, steps, scope = over.width, over.heads, over.lanes, over.steps, over.scope
    moments = over.moments(eps)

    @T.prim_func(s_tir=True)
    def kernel(
        var_y: T.handle,
        var_r: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        r_k: T.Buffer((heads, size), "float32"),
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        var_out: T.handle,
    ) -> None:
        rows = T.int64()
        y = T.match_buffer(var_y, (rows, width), "float32")
        r = T.match_buffer(var_r, (rows, width), "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        out = T.match_buffer(var_out, (rows, width), "float32")
        for t in over.tokens(rows):
            for head in over.each(heads):
                base = T.meta_var(T.cast(head, "int64") * T.int64(size))
                part = T.alloc_buffer((lanes,), "float32", scope=scope)
                # Mean, 1 / deviation, and how much r agrees with k.
                stat = T.alloc_buffer((3,), "float32", scope=scope)
                moments(y, t, base, part, stat)
                for i in T.vectorized(lanes):
                    part[i] = T.float32(0)
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        place = T.meta_var(n * T.int64(lanes) + i)
                        part[i] = (
                            part[i] + r[t, base + place] * k[t, base + place] * r_k[head, place]
                        )
                stat[2] = T.float32(0)
                for i in range(lanes):
                    stat[2] = stat[2] + part[i]
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        out[t, c] = (
                            (y[t, c] - stat[0]) * stat[1] * weight[c] + bias[c] + stat[2] * v[t, c]
                        )

    return kernel
