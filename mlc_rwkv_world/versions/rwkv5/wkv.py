"""The recurrence of RWKV-5 and 6, head by head, in float32, on every target.

A head's matrix S [key channel, value channel] lies in one piece of the state, and each value
channel evolves alone: for a token's r, k and v, a decay w of the channel (5) or of the token (6),
and a bonus u,

    y = r (S + u k v),   S <- diag(w) S + k v

`reference.wkv` is its reference. On a CPU a task has some value channels of a head of a sequence,
on a GPU a thread has one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth

# Value channels of one task on a CPU: sums of as many stay in registers.
_LANES = 32


def wkv(sig: Signature) -> tirx.PrimFunc:
    """(r, w, k, v, u, offsets, state [B, N, D]) -> (y [T, D], state [B, N, D]).

    r, k, v: [T, D]; w: [D] or [T, D]; u: [D]. Where one argument less is given, there are no
    offsets: row i is the next token of sequence i.
    """
    size, step = sig.args[-1].static(1), len(sig.args) == 6
    body = _body(sig, size, step=step, pooled=False)
    width, fixed = sig.args[0].static(1), _is_fixed(sig)

    @T.prim_func(s_tir=True)
    def kernel(
        var_r: T.handle,
        var_w: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        u: T.Buffer((width,), "float32"),
        var_offsets: T.handle,
        var_state: T.handle,
        var_y: T.handle,
        var_new: T.handle,
    ) -> None:
        seq_len, batch = T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        r = T.match_buffer(var_r, (rows, width), "float32")
        decays = T.meta_var((width,) if fixed else (rows, width))
        w = T.match_buffer(var_w, decays, "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (batch, size, width), "float32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        new = T.match_buffer(var_new, (batch, size, width), "float32")
        body((r, w, k, v, u), offsets, (state, new), offsets, 0, 0, y, batch)

    return without(kernel, "offsets") if step else kernel


def wkv_pooled(sig: Signature, size: int) -> tirx.PrimFunc:
    """(r, w, k, v, u, offsets, pool [S, L, R, D], slots, layer, row) -> y [T, D].

    The heads' matrices are `size` rows of the pool's layer from `row` on, updated in place.
    """
    step = len(sig.args) == 7
    body = _body(sig, size, step=step, pooled=True)
    width, fixed = sig.args[0].static(1), _is_fixed(sig)
    layers, state_rows = (sig.args[-2].static(axis) for axis in (1, 2))

    @T.prim_func(s_tir=True)
    def kernel(
        var_r: T.handle,
        var_w: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        u: T.Buffer((width,), "float32"),
        var_offsets: T.handle,
        var_pool: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        row: T.int64,
        var_y: T.handle,
    ) -> None:
        seq_len, batch, places = T.int64(), T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        r = T.match_buffer(var_r, (rows, width), "float32")
        decays = T.meta_var((width,) if fixed else (rows, width))
        w = T.match_buffer(var_w, decays, "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        pool = T.match_buffer(var_pool, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        body((r, w, k, v, u), offsets, (pool, pool), slots, layer, row, y, batch)

    return without(kernel, "offsets") if step else kernel


def _is_fixed(sig: Signature) -> bool:
    """Whether the decay is the channel's, the same for each token."""
    return len(sig.args[1].shape) == 1


def _body(sig: Signature, size: int, *, step: bool, pooled: bool) -> Any:
    """`body((r, w, k, v, u), offsets, (old, new), slots, layer, row, y, batch)`, inlined.

    `old` and `new` are the pool if `pooled`, else matrices [B, N, D].
    """
    width, fixed = sig.args[0].static(1), _is_fixed(sig)
    heads = width // size
    lanes = next(n for n in (_LANES, 16, 8, 4, 2, 1) if size % n == 0) if sig.on_cpu else 1
    pieces, threads = (size // lanes, 1) if sig.on_cpu else (1, size)
    known = sig.args[0].shape[0] if step else None
    if sig.on_cpu:
        outer: Any = parallel_if_worth(known * width * size if isinstance(known, int) else None)
        inner: Any = T.serial
    else:
        outer = partial(T.thread_binding, thread="blockIdx.x")
        inner = partial(T.thread_binding, thread="threadIdx.x")
    scope = STACK if sig.on_cpu else "local"

    # A head's matrix is one piece of memory, which the rows [N, D] cut in another way.
    def place(h: Any, j: Any) -> tuple[Any, Any]:
        at = h * T.int64(size) + j
        row, column = T.truncdiv(at, T.int64(heads)), T.truncmod(at, T.int64(heads))
        return row, column * T.int64(size)

    def index(s: Any, slot: Any, layer: Any, row: Any, h: Any, j: Any, c: Any) -> tuple[Any, ...]:
        down, across = place(h, j)
        return (slot, layer, row + down, across + c) if pooled else (s, down, across + c)

    def of_token(t: Any, c: Any) -> tuple[Any, ...]:
        return (c,) if fixed else (t, c)

    @T.inline
    def body(given, offsets, states, slots, layer, row, y, batch):  # type: ignore[no-untyped-def]
        for task in outer(batch * T.int64(heads * pieces)):
            for thread in inner(threads):
                r, w, k, v, u = T.meta_var(given)
                old, new = T.meta_var(states)
                s = T.meta_var(T.truncdiv(task, T.int64(heads * pieces)))
                within = T.meta_var(T.truncmod(task, T.int64(heads * pieces)))
                h = T.meta_var(T.truncdiv(within, T.int64(pieces)))
                base = T.meta_var(h * T.int64(size))
                first = T.meta_var(
                    T.truncmod(within, T.int64(pieces)) * T.int64(lanes) + T.cast(thread, "int64")
                )
                source = T.meta_var(read_slot(slots, s) if pooled else s)
                target = T.meta_var(write_slot(slots, s) if pooled else s)
                begin = T.meta_var(s if step else T.cast(offsets[s], "int64"))
                count = T.meta_var(T.int64(1) if step else T.cast(offsets[s + 1], "int64") - begin)
                out = T.alloc_buffer((lanes,), "float32", scope=scope)
                for j in range(T.int64(size)):
                    for i in T.vectorized(lanes):
                        new[index(s, target, layer, row, h, j, first + i)] = old[
                            index(s, source, layer, row, h, j, first + i)
                        ]
                for token in range(count):
                    for i in T.vectorized(lanes):
                        out[i] = T.float32(0)
                    for j in range(T.int64(size)):
                        for i in T.vectorized(lanes):
                            out[i] = out[i] + r[begin + token, base + j] * (
                                new[index(s, target, layer, row, h, j, first + i)]
                                + u[base + j]
                                * (k[begin + token, base + j] * v[begin + token, base + first + i])
                            )
                            new[index(s, target, layer, row, h, j, first + i)] = (
                                new[index(s, target, layer, row, h, j, first + i)]
                                * w[of_token(begin + token, base + j)]
                                + k[begin + token, base + j] * v[begin + token, base + first + i]
                            )
                    for i in T.vectorized(lanes):
                        y[begin + token, base + first + i] = out[i]

    return body
