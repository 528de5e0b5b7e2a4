"""The RWKV-4 recurrence, channel by channel, in float32.

For one channel, with w = -exp(time_decay) and u = time_first (RWKV-LM `RWKV-v4neo`):

    q = max(p, u + k);  y = (e^(p-q) a + e^(u+k-q) v) / (e^(p-q) b + e^(u+k-q))
    q = max(p + w, k);  a = e^(p+w-q) a + e^(k-q) v;  b = e^(p+w-q) b + e^(k-q);  p = q

`versions.rwkv4.reference.wkv` is its reference.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.channels import Channels
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature

# Four exponentials and a division.
_STEP_COST = 16


def output(a: Any, b: Any, old: Any, new: Any, v: Any) -> Any:
    """The weighted mean of the past (weight e^old, sums a and b) and v (weight e^new)."""
    top = T.max(old, new)
    past, now = T.exp(old - top), T.exp(new - top)
    return (past * a + now * v) / (past * b + now)


def accumulate(total: Any, old: Any, new: Any, value: Any) -> Any:
    """e^old * total + e^new * value, scaled by e^-max(old, new)."""
    top = T.max(old, new)
    return T.exp(old - top) * total + T.exp(new - top) * value


def kernel_of(width: int, body: Any, *, step: bool = False) -> tirx.PrimFunc:
    """(k, v, w, u, state, offsets) -> (y, state), computed by `body`; see `wkv`.

    `body(k, v, w, u, old, offsets, y, new, batch)` is inlined. A `step` has one row for each
    sequence, and no offsets.
    """

    @T.prim_func(s_tir=True)
    def kernel(
        var_k: T.handle,
        var_v: T.handle,
        w: T.Buffer((width,), "float32"),
        u: T.Buffer((width,), "float32"),
        var_old: T.handle,
        var_offsets: T.handle,
        var_y: T.handle,
        var_new: T.handle,
    ) -> None:
        seq_len, batch = T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        old = T.match_buffer(var_old, (batch, 3, width), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        new = T.match_buffer(var_new, (batch, 3, width), "float32")
        body(k, v, w, u, old, offsets, y, new, batch)

    return without(kernel, "offsets") if step else kernel


def wkv(sig: Signature) -> tirx.PrimFunc:
    """(k, v [T, D], w, u [D], state [B, 3, D], offsets) -> (y [T, D], state).

    The state's rows of a sequence are a, b and p.
    """
    width = sig.args[0].static(1)
    grid = Channels(width, sig)
    lanes, blocks = grid.lanes, grid.blocks
    one = T.float32(1)
    scope = STACK if sig.on_cpu else "local"

    @T.inline
    def body(k, v, w, u, old, offsets, y, new, batch):  # type: ignore[no-untyped-def]
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                a = T.alloc_buffer((lanes,), "float32", scope=scope)
                b = T.alloc_buffer((lanes,), "float32", scope=scope)
                p = T.alloc_buffer((lanes,), "float32", scope=scope)
                for i in T.vectorized(lanes):
                    a[i] = old[s, 0, c + i]
                    b[i] = old[s, 1, c + i]
                    p[i] = old[s, 2, c + i]
                for step in range(offsets[s + 1] - offsets[s]):
                    t: T.let[T.int64] = T.cast(offsets[s] + step, "int64")
                    for i in T.vectorized(lanes):
                        y[t, c + i] = output(a[i], b[i], p[i], u[c + i] + k[t, c + i], v[t, c + i])
                        a[i] = accumulate(a[i], p[i] + w[c + i], k[t, c + i], v[t, c + i])
                        b[i] = accumulate(b[i], p[i] + w[c + i], k[t, c + i], one)
                        p[i] = T.max(p[i] + w[c + i], k[t, c + i])
                for i in T.vectorized(lanes):
                    new[s, 0, c + i] = a[i]
                    new[s, 1, c + i] = b[i]
                    new[s, 2, c + i] = p[i]

    return kernel_of(width, body)


def wkv_step(sig: Signature) -> tirx.PrimFunc:
    """(k, v, w, u, state) -> (y, state) where row i is the next token of sequence i."""
    width = sig.args[0].static(1)
    grid = Channels(width, sig, sig.args[0].shape[0], cost=_STEP_COST)
    lanes, blocks = grid.lanes, grid.blocks
    one = T.float32(1)

    @T.inline
    def body(k, v, w, u, old, _offsets, y, new, batch):  # type: ignore[no-untyped-def]
        for piece in grid.outer(batch * blocks):
            for thread in grid.threads():
                s = T.meta_var(grid.row(piece))
                c = T.meta_var(grid.channel(piece, thread))
                for i in T.vectorized(lanes):
                    a = T.meta_var(old[s, 0, c + i])
                    b = T.meta_var(old[s, 1, c + i])
                    p = T.meta_var(old[s, 2, c + i])
                    y[s, c + i] = output(a, b, p, u[c + i] + k[s, c + i], v[s, c + i])
                    new[s, 0, c + i] = accumulate(a, p + w[c + i], k[s, c + i], v[s, c + i])
                    new[s, 1, c + i] = accumulate(b, p + w[c + i], k[s, c + i], one)
                    new[s, 2, c + i] = T.max(p + w[c + i], k[s, c + i])

    return kernel_of(width, body, step=True)
