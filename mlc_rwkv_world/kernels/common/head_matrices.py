"""Recurrences of a matrix for each head, in float32, on every target.

A head's matrix S [key channel, value channel] lies in one piece of the state, and each value
channel evolves alone. On a CPU a task has some value channels of a head of a sequence, on a GPU a
thread has one; CUDA has a kernel of its own, in `kernels.cuda.head_matrices`. What a token does to
them, a version says by a `Token`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda import head_matrices as cuda
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth

# Value channels of one task on a CPU: sums of as many stay in registers.
_LANES = 32
# The tensors of the most vectors that a recurrence takes.
_VECTORS = tuple(f"vector_{letter}" for letter in "abcdef")


@dataclass(frozen=True)
class Token:
    """What a token does.

    `advance(vectors, t, base, first, state, cell, sums, size, lanes)` is inlined: for token t, with
    the head's channels from `base` on and its value channels from `first` on, it brings
    `state[cell(j, first + i)]`, S of key channel j, to what it becomes, and leaves y in the first
    `lanes` of `sums`. `vectors` are as many tensors [T, D], or [D] where a vector is no token's
    own; there are `sums` times `lanes` sums. `cell` says the same of one value of S.
    """

    vectors: int
    sums: int
    advance: Callable[..., None]
    cell: cuda.Cell


def recurrence(sig: Signature, token: Token) -> tirx.PrimFunc:
    """(vectors..., offsets, state [B, N, D]) -> (y [T, D], state [B, N, D]).

    Where one argument less is given, there are no offsets: row i is the next token of sequence i.
    """
    size, step = sig.args[-1].static(1), len(sig.args) == token.vectors + 1
    body = _body(sig, size, token, step=step, pooled=False)
    width = sig.args[0].static(1)
    own = _own(sig, token)

    @T.prim_func(s_tir=True)
    def kernel(
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
        var_offsets: T.handle,
        var_state: T.handle,
        var_y: T.handle,
        var_new: T.handle,
    ) -> None:
        seq_len, batch = T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        vector_a = T.match_buffer(var_a, own(0, rows), "float32")
        vector_b = T.match_buffer(var_b, own(1, rows), "float32")
        vector_c = T.match_buffer(var_c, own(2, rows), "float32")
        vector_d = T.match_buffer(var_d, own(3, rows), "float32")
        vector_e = T.match_buffer(var_e, own(4, rows), "float32")
        vector_f = T.match_buffer(var_f, own(5, rows), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (batch, size, width), "float32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        new = T.match_buffer(var_new, (batch, size, width), "float32")
        vectors = T.meta_var((vector_a, vector_b, vector_c, vector_d, vector_e, vector_f))
        body(vectors, offsets, (state, new), offsets, 0, 0, y, batch)

    return _with(kernel, token, step=step)


def pooled_recurrence(sig: Signature, token: Token, size: int) -> tirx.PrimFunc:
    """(vectors..., offsets, pool [S, L, R, D], slots, layer, row) -> y [T, D].

    The heads' matrices are `size` rows of the pool's layer from `row` on, updated in place.
    """
    step = len(sig.args) == token.vectors + 2
    body = _body(sig, size, token, step=step, pooled=True)
    width = sig.args[0].static(1)
    layers, state_rows = (sig.args[-2].static(axis) for axis in (1, 2))
    own = _own(sig, token)

    @T.prim_func(s_tir=True)
    def kernel(
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
        var_offsets: T.handle,
        var_pool: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        row: T.int64,
        var_y: T.handle,
    ) -> None:
        seq_len, batch, places = T.int64(), T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        vector_a = T.match_buffer(var_a, own(0, rows), "float32")
        vector_b = T.match_buffer(var_b, own(1, rows), "float32")
        vector_c = T.match_buffer(var_c, own(2, rows), "float32")
        vector_d = T.match_buffer(var_d, own(3, rows), "float32")
        vector_e = T.match_buffer(var_e, own(4, rows), "float32")
        vector_f = T.match_buffer(var_f, own(5, rows), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        pool = T.match_buffer(var_pool, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        vectors = T.meta_var((vector_a, vector_b, vector_c, vector_d, vector_e, vector_f))
        body(vectors, offsets, (pool, pool), slots, layer, row, y, batch)

    return _with(kernel, token, step=step)


def _with(kernel: tirx.PrimFunc, token: Token, *, step: bool) -> tirx.PrimFunc:
    """`kernel` with the tensors that it has in this case."""
    return without(kernel, *_VECTORS[token.vectors :], *(["offsets"] if step else []))


def _own(sig: Signature, token: Token) -> Callable[[int, Any], tuple[Any, ...]]:
    """The shape of a vector's tensor, by its number and the rows of tokens."""
    width = sig.args[0].static(1)
    fixed = [len(arg.shape) == 1 for arg in sig.args[: token.vectors]]

    def own(number: int, rows: Any) -> tuple[Any, ...]:
        return (width,) if number < len(fixed) and fixed[number] else (rows, width)

    return own


def _body(sig: Signature, size: int, token: Token, *, step: bool, pooled: bool) -> Any:
    """`body(vectors, offsets, (old, new), slots, layer, row, y, batch)`, inlined.

    `old` and `new` are the pool if `pooled`, else matrices [B, N, D].
    """
    width = sig.args[0].static(1)
    heads, count = width // size, token.vectors
    lanes = next(n for n in (_LANES, 16, 8, 4, 2, 1) if size % n == 0) if sig.on_cpu else 1
    pieces, threads = (size // lanes, 1) if sig.on_cpu else (1, size)
    known = sig.args[0].shape[0] if step else None
    if sig.on_cpu:
        outer: Any = parallel_if_worth(known * width * size if isinstance(known, int) else None)
        inner: Any = T.serial
    else:
        outer = partial(T.thread_binding, thread="blockIdx.x")
        inner = partial(T.thread_binding, thread="threadIdx.x")
    scope, room = STACK if sig.on_cpu else "local", token.sums * lanes
    advance = token.advance

    # A head's matrix is one piece of memory, which the rows [N, D] cut in another way.
    def index(s: Any, slot: Any, layer: Any, row: Any, h: Any, j: Any, c: Any) -> tuple[Any, ...]:
        at = h * T.int64(size) + j
        down, column = T.truncdiv(at, T.int64(heads)), T.truncmod(at, T.int64(heads))
        across = column * T.int64(size) + c
        return (slot, layer, row + down, across) if pooled else (s, down, across)

    if cuda.suits(sig, size):
        fixed = [len(arg.shape) == 1 for arg in sig.args[:count]]
        return cuda.body(sig, size, token.cell, fixed, index, step=step, pooled=pooled)

    @T.inline
    def body(vectors, offsets, states, slots, layer, row, y, batch):  # type: ignore[no-untyped-def]
        for task in outer(batch * T.int64(heads * pieces)):
            for thread in inner(threads):
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
                tokens = T.meta_var(T.int64(1) if step else T.cast(offsets[s + 1], "int64") - begin)
                cell = T.meta_var(partial(index, s, target, layer, row, h))
                sums = T.alloc_buffer((room,), "float32", scope=scope)
                for j in range(T.int64(size)):
                    for i in T.vectorized(lanes):
                        new[cell(j, first + i)] = old[index(s, source, layer, row, h, j, first + i)]
                for number in range(tokens):
                    advance(
                        vectors[:count], begin + number, base, first, new, cell, sums, size, lanes
                    )
                    for i in T.vectorized(lanes):
                        y[begin + number, base + first + i] = sums[i]

    return body
