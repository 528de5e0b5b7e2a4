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

from mlc_rwkv_world.kernels.common.matrix_place import matrix_place
from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda import head_matrices as cuda
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType, parallel_if_worth

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
    `lanes` of `sums`; there are `sums` times `lanes` sums. `vectors` are as many tensors [T, D],
    and then [D] where they are no token's own. A kernel's arguments are these tensors, or begin
    with one [how many, T, D] in place of those [T, D]. `cell` says
    the same of one value of S.
    """

    vectors: int
    sums: int
    advance: Callable[..., None]
    cell: cuda.Cell


class _Row:
    """One of the tensors [T, D] that lie in one, read as if it were alone."""

    def __init__(self, stacked: Any, number: int) -> None:
        self.stacked, self.number = stacked, number
        self.shape = stacked.shape[1:]

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        place = (self.number, *index)
        return self.stacked[place]


class _Given:
    """The arguments that hold a token's vectors."""

    def __init__(self, sig: Signature, token: Token) -> None:
        first = sig.args[0].shape
        self.stacked = int(first[0]) if len(first) == 3 else 0
        self.width = int(first[-1])
        self.count = token.vectors - self.stacked + bool(self.stacked)
        self._ranks = [len(arg.shape) for arg in sig.args[: self.count]]

    def shape(self, number: int, rows: Any) -> tuple[Any, ...]:
        """That of an argument, for `rows` of tokens."""
        rank = self._ranks[number] if number < self.count else 2
        return (self.width,) if rank == 1 else (self.stacked, rows, self.width)[3 - rank :]

    def vectors(self, *tensors: Any) -> tuple[Any, ...]:
        """The vectors themselves."""
        first, *others = tensors[: self.count]
        tokens = [_Row(first, n) for n in range(self.stacked)] if self.stacked else [first]
        return (*tokens, *others)


def recurrence(sig: Signature, token: Token) -> tirx.PrimFunc:
    """(vectors..., offsets, state [B, N, D]) -> (y [T, D], state [B, N, D]).

    Where one argument less is given, there are no offsets: row i is the next token of sequence i.
    """
    state, given = sig.args[-1], _Given(sig, token)
    step = len(sig.args) == given.count + 1
    return _kernel(sig, token, given, state, state.static(1), step=step, pooled=False)


def pooled_recurrence(sig: Signature, token: Token, size: int) -> tirx.PrimFunc:
    """(vectors..., offsets, pool [S, L, R, D], slots, layer, row) -> y [T, D].

    The heads' matrices are `size` rows of the pool's layer from `row` on, updated in place.
    """
    given = _Given(sig, token)
    step = len(sig.args) == given.count + 2
    return _kernel(sig, token, given, sig.args[-2], size, step=step, pooled=True)


def _kernel(
    sig: Signature,
    token: Token,
    given: _Given,
    state_type: TensorType,
    size: int,
    *,
    step: bool,
    pooled: bool,
) -> tirx.PrimFunc:
    body = _body(sig, size, token, step=step, pooled=pooled)
    width, own, heights = given.width, given.shape, state_type.shape[1:]

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
        var_slots: T.handle,
        layer: T.int64,
        row: T.int64,
        var_y: T.handle,
        var_new: T.handle,
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
        state = T.match_buffer(var_state, (places if pooled else batch, *heights), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        y = T.match_buffer(var_y, (rows, width), "float32")
        new = T.match_buffer(var_new, (batch, size, width), "float32")
        vectors = T.meta_var(
            given.vectors(vector_a, vector_b, vector_c, vector_d, vector_e, vector_f)
        )
        states = T.meta_var((state, state if pooled else new))
        body(vectors, offsets, states, slots, layer, row, y, batch)

    absent = [*_VECTORS[given.count :], *(["offsets"] if step else [])]
    return without(kernel, *absent, *(["new"] if pooled else ["slots", "layer", "row"]))


def _body(sig: Signature, size: int, token: Token, *, step: bool, pooled: bool) -> Any:
    """`body(vectors, offsets, (old, new), slots, layer, row, y, batch)`, inlined.

    `old` and `new` are the pool if `pooled`, else matrices [B, N, D].
    """
    width = sig.args[0].static(-1)
    heads = width // size
    lanes = next(n for n in (_LANES, 16, 8, 4, 2, 1) if size % n == 0) if sig.on_cpu else 1
    pieces, threads = (size // lanes, 1) if sig.on_cpu else (1, size)
    known = sig.args[0].shape[-2] if step else None
    if sig.on_cpu:
        outer: Any = parallel_if_worth(known * width * size if isinstance(known, int) else None)
        inner: Any = T.serial
    else:
        outer = partial(T.thread_binding, thread="blockIdx.x")
        inner = partial(T.thread_binding, thread="threadIdx.x")
    scope, room = STACK if sig.on_cpu else "local", token.sums * lanes
    advance = token.advance

    index = matrix_place(width, size, pooled=pooled)
    if cuda.suits(sig, size):
        fixed = [len(arg.shape) == 1 for arg in sig.args[: token.vectors]]
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
                    advance(vectors, begin + number, base, first, new, cell, sums, size, lanes)
                    for i in T.vectorized(lanes):
                        y[begin + number, base + first + i] = sums[i]

    return body
