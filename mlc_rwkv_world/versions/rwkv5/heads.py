"""The normalization of heads, on every target, in float32.

A CPU takes the heads of some tokens in parallel, on a GPU a thread has a head. Sums go over 16
lanes side by side on a CPU, and channel by channel on a GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth


def head_norm(sig: Signature, size: int, eps: float) -> tirx.PrimFunc:
    """(y [T, D], weight, bias [D]) -> [T, D], for heads of `size`: see `reference.head_norm`."""
    width, known = sig.args[0].static(1), sig.args[0].shape[0]
    heads, inverse = width // size, 1.0 / size
    lanes = next(n for n in (16, 8, 4, 2, 1) if size % n == 0) if sig.on_cpu else 1
    steps, scope = size // lanes, STACK if sig.on_cpu else "local"
    if sig.on_cpu:
        tokens: Any = parallel_if_worth(known * width * 4 if isinstance(known, int) else None)
        each: Any = T.serial
    else:
        tokens = partial(T.thread_binding, thread="blockIdx.x")
        each = partial(T.thread_binding, thread="threadIdx.x")

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
        for t in tokens(rows):
            for head in each(heads):
                base = T.meta_var(T.cast(head, "int64") * T.int64(size))
                part = T.alloc_buffer((lanes,), "float32", scope=scope)
                # Mean, and 1 / deviation.
                stat = T.alloc_buffer((2,), "float32", scope=scope)
                for i in T.vectorized(lanes):
                    part[i] = T.float32(0)
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        part[i] = part[i] + y[t, base + n * T.int64(lanes) + i]
                stat[0] = T.float32(0)
                for i in range(lanes):
                    stat[0] = stat[0] + part[i]
                stat[0] = stat[0] * T.float32(inverse)
                for i in T.vectorized(lanes):
                    part[i] = T.float32(0)
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        part[i] = part[i] + (y[t, c] - stat[0]) * (y[t, c] - stat[0])
                stat[1] = T.float32(0)
                for i in range(lanes):
                    stat[1] = stat[1] + part[i]
                stat[1] = T.float32(1) / T.sqrt(stat[1] * T.float32(inverse) + T.float32(eps))
                for n in range(T.int64(steps)):
                    for i in T.vectorized(lanes):
                        c = T.meta_var(base + n * T.int64(lanes) + i)
                        out[t, c] = (y[t, c] - stat[0]) * stat[1] * weight[c] + bias[c]

    return kernel
