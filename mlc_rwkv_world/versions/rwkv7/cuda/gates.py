"""What RWKV-7's recurrence takes, on CUDA: decay, keys, mixed value and gate, by head.

For a step, the second factors of the small products are part of it: four lanes share a row of them,
and a block has some channels of a head. Where there are more rows, those products are tensor
cores', and a thread has a channel. Each warp takes the norm of the head's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.dot import WARP, sum_over_lanes
from mlc_rwkv_world.kernels.cuda.short_rows import SHARERS, Short, sum_over_sharers
from mlc_rwkv_world.kernels.cuda.unrolled import each
from mlc_rwkv_world.kernels.optional import padded, without
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv7.reference import DECAY_RATE, LEAST_NORM

# Channels of a block of a step.
CHANNELS = 16
# By letter, and what block 0 has.
LETTERS, OF_FIRST_BLOCK = "wagv", "wag"


def gates(sig: Signature, size: int, *, shared: bool) -> tirx.PrimFunc:
    """(k, v, value_first [T, D], uw, ua, ug, uv [T, D], w0, a0, v0, k_k, k_a [D]) -> six [T, D].

    The results are w, the key that is written, the value, the one that is removed, what it is
    replaced by, and the gate, as `reference.time_mix` has them. uw to uv are the small products.
    Where values are not `shared`, as in block 0, there are no value_first, uv and v0, and the value
    is v, and no result. All is float32.
    """
    width = sig.args[0].static(1)
    heads, threads = width // size, -(-size // WARP) * WARP
    removed_norm, store = _norm(size), _store(shared)

    @T.prim_func(s_tir=True)
    def kernel(
        var_k: T.handle,
        var_v: T.handle,
        var_first: T.handle,
        var_uw: T.handle,
        var_ua: T.handle,
        var_ug: T.handle,
        var_uv: T.handle,
        w0: T.Buffer((width,), "float32"),
        a0: T.Buffer((width,), "float32"),
        v0: T.Buffer((width,), "float32"),
        k_k: T.Buffer((width,), "float32"),
        k_a: T.Buffer((width,), "float32"),
        var_w: T.handle,
        var_written: T.handle,
        var_value: T.handle,
        var_removed: T.handle,
        var_replaced: T.handle,
        var_gate: T.handle,
    ) -> None:
        rows = T.int64()
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        first = T.match_buffer(var_first, (rows, width), "float32")
        uw = T.match_buffer(var_uw, (rows, width), "float32")
        ua = T.match_buffer(var_ua, (rows, width), "float32")
        ug = T.match_buffer(var_ug, (rows, width), "float32")
        uv = T.match_buffer(var_uv, (rows, width), "float32")
        w = T.match_buffer(var_w, (rows, width), "float32")
        written = T.match_buffer(var_written, (rows, width), "float32")
        value = T.match_buffer(var_value, (rows, width), "float32")
        removed = T.match_buffer(var_removed, (rows, width), "float32")
        replaced = T.match_buffer(var_replaced, (rows, width), "float32")
        gate = T.match_buffer(var_gate, (rows, width), "float32")
        for block in T.thread_binding(rows * T.int64(heads), thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                total = T.alloc_buffer((4,), "float32", scope="local")
                norm = T.alloc_buffer((1,), "float32", scope="local")
                row = T.meta_var(T.truncdiv(block, T.int64(heads)))
                base = T.meta_var(T.truncmod(block, T.int64(heads)) * T.int64(size))
                c = T.meta_var(base + T.cast(thread, "int64"))
                removed_norm(norm, k, k_k, row, base, thread % WARP)
                if thread < size:
                    total[0] = uw[row, c]
                    total[1] = ua[row, c]
                    total[2] = ug[row, c]
                    if shared:
                        total[3] = uv[row, c]
                    store(
                        row, c, total, norm,
                        (k, v, first), (w0, a0, v0, k_k, k_a),
                        (w, written, value, removed, replaced, gate),
                    )  # fmt: skip

    return without(kernel, *([] if shared else ["first", "uv", "v0", "value"]))


def suits(sig: Signature, size: int, ranks: Sequence[int]) -> bool:
    """Whether `gates_of_hidden` takes these weights, of which `sig` says how they lie."""
    known = all(Short(*one).suits for one in zip(sig.stored, ranks, strict=True))
    return sig.has_async_copies and size % CHANNELS == 0 and known


def gates_of_hidden(sig: Signature, size: int, *, shared: bool) -> tirx.PrimFunc:
    """(k, v, value_first [1, D], hw, ha, hg, hv, w2, a2, g2, v2, w0, ..., k_a) -> as `gates`.

    hw to hv [1, rank] are what the first factors give; each weight is two tensors.
    """
    count = 4 if shared else 3
    begin = 3 if shared else 2
    width = sig.args[0].static(1)
    hidden, pairs = sig.args[begin : begin + count], sig.args[begin + count : begin + 3 * count]
    ranks = [one.static(1) for one in hidden]
    firsts = [0, *accumulate(ranks)]
    dots = [Short(*one).dot() for one in zip(sig.stored, ranks, strict=True)]
    threads, slices = CHANNELS * SHARERS, width // CHANNELS
    removed_norm, store = _norm(size), _store(shared)
    h, w2, s2 = (padded(types, len(LETTERS)) for types in (hidden, pairs[::2], pairs[1::2]))

    @T.prim_func(s_tir=True)
    def kernel(
        k: T.Buffer((1, width), "float32"),
        v: T.Buffer((1, width), "float32"),
        first: T.Buffer((1, width), "float32"),
        hw: T.Buffer(h[0].shape, h[0].dtype),
        ha: T.Buffer(h[1].shape, h[1].dtype),
        hg: T.Buffer(h[2].shape, h[2].dtype),
        hv: T.Buffer(h[3].shape, h[3].dtype),
        w2_w: T.Buffer(w2[0].shape, w2[0].dtype),
        s2_w: T.Buffer(s2[0].shape, s2[0].dtype),
        w2_a: T.Buffer(w2[1].shape, w2[1].dtype),
        s2_a: T.Buffer(s2[1].shape, s2[1].dtype),
        w2_g: T.Buffer(w2[2].shape, w2[2].dtype),
        s2_g: T.Buffer(s2[2].shape, s2[2].dtype),
        w2_v: T.Buffer(w2[3].shape, w2[3].dtype),
        s2_v: T.Buffer(s2[3].shape, s2[3].dtype),
        w0: T.Buffer((width,), "float32"),
        a0: T.Buffer((width,), "float32"),
        v0: T.Buffer((width,), "float32"),
        k_k: T.Buffer((width,), "float32"),
        k_a: T.Buffer((width,), "float32"),
        w: T.Buffer((1, width), "float32"),
        written: T.Buffer((1, width), "float32"),
        value: T.Buffer((1, width), "float32"),
        removed: T.Buffer((1, width), "float32"),
        replaced: T.Buffer((1, width), "float32"),
        gate: T.Buffer((1, width), "float32"),
    ) -> None:
        hiddens = T.meta_var((hw, ha, hg, hv))
        weights = T.meta_var((w2_w, w2_a, w2_g, w2_v))
        scales = T.meta_var((s2_w, s2_a, s2_g, s2_v))
        for block in T.thread_binding(slices, thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                x = T.alloc_buffer((firsts[-1],), "float32", scope="shared")
                total = T.alloc_buffer((4,), "float32", scope="local")
                norm = T.alloc_buffer((1,), "float32", scope="local")
                c = T.meta_var(block * CHANNELS + thread // SHARERS)
                part = T.meta_var(thread % SHARERS)

                @T.inline
                def bring(n):  # type: ignore[no-untyped-def]
                    for i in T.unroll(-(-ranks[n] // threads)):
                        at = T.meta_var(i * threads + thread)
                        if ranks[n] % threads == 0 or at < ranks[n]:
                            x[firsts[n] + at] = T.cast(hiddens[n][0, at], "float32")

                @T.inline
                def multiply(n):  # type: ignore[no-untyped-def]
                    total[n] = T.float32(0)
                    dots[n](total, n, weights[n], scales[n], c, part, x, firsts[n])

                each(bring, count)
                T.tvm_storage_sync("shared")
                each(multiply, count)
                sum_over_sharers(total, count)
                removed_norm(norm, k, k_k, 0, block * CHANNELS // size * size, thread % WARP)
                if part == 0:
                    store(
                        0, c, total, norm,
                        (k, v, first), (w0, a0, v0, k_k, k_a),
                        (w, written, value, removed, replaced, gate),
                    )  # fmt: skip

    absent = [] if shared else ["first", "hv", "w2_v", "s2_v", "v0", "value"]
    return without(kernel, *absent)


def _norm(size: int) -> Callable[..., None]:
    """`body(norm, k, k_k, row, base, lane)`: 1 / the length of a head's k k_k, to norm[0]."""
    turns = -(-size // WARP)

    @T.inline
    def body(norm: Any, k: Any, k_k: Any, row: Any, base: Any, lane: Any) -> None:
        norm[0] = T.float32(0)
        for i in T.unroll(turns):
            if size % WARP == 0 or i * WARP + lane < size:
                c = T.meta_var(base + i * WARP + lane)
                norm[0] = norm[0] + k[row, c] * k_k[c] * (k[row, c] * k_k[c])
        sum_over_lanes(norm, 0, WARP)
        norm[0] = T.float32(1) / T.max(T.sqrt(norm[0]), T.float32(LEAST_NORM))

    chosen: Callable[..., None] = body
    return chosen


def _store(shared: bool) -> Callable[..., None]:
    """`body(row, c, total, norm, (k, v, first), vectors, outs)`: all of one channel's results.

    `total` is what the small products give it.
    """

    @T.inline
    def body(row: Any, c: Any, total: Any, norm: Any, given: Any, vectors: Any, outs: Any) -> None:
        k, v, first = T.meta_var(given)
        w0, a0, v0, k_k, k_a = T.meta_var(vectors)
        w, written, value, removed, replaced, gate = T.meta_var(outs)
        # How much is replaced, and what is removed.
        own = T.alloc_buffer((2,), "float32", scope="local")
        own[0] = T.sigmoid(a0[c] + total[1])
        own[1] = k[row, c] * k_k[c] * norm[0]
        w[row, c] = T.exp(T.sigmoid(w0[c] + total[0]) * T.float32(-DECAY_RATE))
        written[row, c] = k[row, c] * (T.float32(1) + (own[0] - T.float32(1)) * k_a[c])
        removed[row, c] = own[1]
        replaced[row, c] = own[1] * own[0]
        gate[row, c] = total[2]
        if shared:
            value[row, c] = v[row, c] + (first[row, c] - v[row, c]) * T.sigmoid(v0[c] + total[3])

    chosen: Callable[..., None] = body
    return chosen
