"""Recurrences of a matrix for each head on CUDA: one launch, the matrix in registers.

A block has some value channels of a head of a sequence, and four lanes share one of them: each has
a quarter of its key channels, four neighbours of every sixteen, so that lanes read the token's
vectors from shared memory side by side. A prompt's vectors are copied there some tokens ahead; a
step reads them where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda.dot import sum_over_lanes
from mlc_rwkv_world.kernels.cuda.intrinsics import copy_async, copy_commit, copy_wait
from mlc_rwkv_world.kernels.cuda.unrolled import each, place
from mlc_rwkv_world.kernels.signature import Signature

# Value channels of a block, lanes that share one, and neighbouring key channels of a lane.
VALUES, SHARERS, NEIGHBOURS = 16, 4, 4
THREADS = VALUES * SHARERS
STAGES = 4
_STATIC_SHARED = 48 * 1024
_MOST_STEPS = 8
# Key channels of a head whose registers a thread can still hold.
_MOST_KEYS = 128


@dataclass(frozen=True)
class Cell:
    """What a token does to one value of S, and what it reads there.

    `value` is the number of the vector that has something for each value channel; of the others `x`
    are what they have for this key channel. With `removed`, its sum over the key channels comes
    first. `update(s, x, v, removed)` is what s becomes, and the sum of `read(s, new, x, v)` is y.
    """

    value: int
    update: Callable[[Any, Sequence[Any], Any, Any], Any]
    read: Callable[[Any, Any, Sequence[Any], Any], Any]
    removed: Callable[[Any, Sequence[Any]], Any] | None = None


def suits(sig: Signature, size: int) -> bool:
    """Whether the kernel takes heads of this size, on this target."""
    fits = size % VALUES == 0 and size <= _MOST_KEYS
    return sig.has_async_copies and fits


def body(
    sig: Signature,
    size: int,
    cell: Cell,
    fixed: Sequence[bool],
    index: Callable[..., Any],
    *,
    step: bool,
    pooled: bool,
    following: Callable[..., None] | None = None,
) -> Any:
    """`body(vectors, offsets, (old, new), slots, layer, row, y, batch)`, inlined.

    `fixed` says which vectors are the same for all tokens. `index(s, slot, layer, row, h, j, c)` is
    where a value of S stands in the tensors of states, which are the pool if `pooled`. In a step, a
    block may have a whole head: then `following(ys, row, head, base, thread)`, which is inlined
    too, gets what the head has in its row of y, and y is not written.
    """
    whole_head = following is not None
    # Where nothing follows, `after` is anything, and not called.
    after: Callable[..., None] = following or each
    in_block = size if whole_head else VALUES
    threads = in_block * SHARERS
    width = sig.args[0].static(1)
    heads, slices, keys = width // size, size // in_block, size // SHARERS
    moving = [n for n, same in enumerate(fixed) if not same and n != cell.value]
    still = [n for n, same in enumerate(fixed) if same]
    count, kept = len(fixed), max(1, len(still))
    per_step = (len(moving) * size + VALUES) * 4 * STAGES
    steps = next(n for n in (_MOST_STEPS, 4, 2, 1) if n * per_step <= _STATIC_SHARED)
    row_pieces, value_pieces = size // 4, VALUES // 4

    def at(q: Any, part: Any, e: Any) -> Any:
        """The key channel of register q * NEIGHBOURS + e."""
        return q * (SHARERS * NEIGHBOURS) + part * NEIGHBOURS + e

    def column(x: Any, held: Any, q: Any, e: Any) -> list[Any]:
        """What each vector has for a key channel; nothing for the values'."""
        register = q * NEIGHBOURS + e
        return [
            held[still.index(n), register] if n in still else x[moving.index(n), e]
            for n in [n if n != cell.value else moving[0] for n in range(count)]
        ]

    removal = cell.removed or (lambda s, _: s)
    removes = cell.removed is not None

    @T.inline
    def advance(load, state, held, v, removed, total):  # type: ignore[no-untyped-def]
        """One token: `load(x, q)` fills x with the moving vectors of four neighbours."""
        x = T.alloc_buffer((len(moving), NEIGHBOURS), "float32", scope="local")
        fresh = T.alloc_buffer((1,), "float32", scope="local")
        removed[0] = T.float32(0)
        total[0] = T.float32(0)
        if removes:
            for q in T.unroll(keys // NEIGHBOURS):
                load(x, q)
                for e in T.unroll(NEIGHBOURS):
                    removed[0] = removed[0] + removal(
                        state[q * NEIGHBOURS + e], column(x, held, q, e)
                    )
            sum_over_lanes(removed, 0, SHARERS)
        for q in T.unroll(keys // NEIGHBOURS):
            load(x, q)
            for e in T.unroll(NEIGHBOURS):
                fresh[0] = cell.update(
                    state[q * NEIGHBOURS + e], column(x, held, q, e), v, removed[0]
                )
                total[0] = total[0] + cell.read(
                    state[q * NEIGHBOURS + e], fresh[0], column(x, held, q, e), v
                )
                state[q * NEIGHBOURS + e] = fresh[0]
        sum_over_lanes(total, 0, SHARERS)

    @T.inline
    def prompt(vectors, y, state, held, begin, tokens, base, first, thread):  # type: ignore[no-untyped-def]
        xs = T.alloc_buffer((STAGES, len(moving), steps, size), "float32", scope="shared")
        vs = T.alloc_buffer((STAGES, steps, VALUES), "float32", scope="shared")
        removed = T.alloc_buffer((1,), "float32", scope="local")
        total = T.alloc_buffer((1,), "float32", scope="local")
        part = T.meta_var(thread % SHARERS)
        value = T.meta_var(thread // SHARERS)

        @T.inline
        def copy(to, source, pieces, column0, turn):  # type: ignore[no-untyped-def]
            """`to(step, column)` gets rows of the turn; those beyond the end get the last."""
            for i in T.unroll(-(-steps * pieces // THREADS)):
                piece = T.meta_var(i * THREADS + thread)
                if steps * pieces % THREADS == 0 or piece < steps * pieces:
                    token = T.meta_var(T.min(turn * steps + piece // pieces, tokens - 1))
                    copy_async(
                        T.address_of(to(piece // pieces, piece % pieces * 4)),
                        T.address_of(
                            source[
                                begin + T.cast(token, "int64"),
                                column0 + T.cast(piece % pieces * 4, "int64"),
                            ]
                        ),
                        16,
                    )

        @T.inline
        def start(turn):  # type: ignore[no-untyped-def]
            @T.inline
            def one(n):  # type: ignore[no-untyped-def]
                copy(
                    partial(place, xs, turn % STAGES, n),
                    vectors[moving[n]],
                    row_pieces,
                    base,
                    turn,
                )

            each(one, len(moving))
            copy(
                partial(place, vs, turn % STAGES),
                vectors[cell.value],
                value_pieces,
                base + first,
                turn,
            )

        for turn in T.unroll(STAGES - 1):
            if turn * steps < tokens:
                start(turn)
            copy_commit()
        for turn in range((tokens + (steps - 1)) // steps):
            copy_wait(STAGES - 2)
            T.tvm_storage_sync("shared")
            if (turn + (STAGES - 1)) * steps < tokens:
                start(turn + (STAGES - 1))
            copy_commit()
            for number in range(T.min(steps, tokens - turn * steps)):

                @T.inline
                def load(x, q):  # type: ignore[no-untyped-def]
                    for n in T.unroll(len(moving)):
                        for e in T.vectorized(NEIGHBOURS):
                            x[n, e] = xs[turn % STAGES, n, number, at(q, part, e)]

                advance(load, state, held, vs[turn % STAGES, number, value], removed, total)
                if part == 0:
                    y[
                        begin + T.cast(turn * steps + number, "int64"),
                        base + first + T.cast(value, "int64"),
                    ] = total[0]

    @T.inline
    def single(vectors, put, state, held, token, base, first, thread):  # type: ignore[no-untyped-def]
        removed = T.alloc_buffer((1,), "float32", scope="local")
        total = T.alloc_buffer((1,), "float32", scope="local")
        part = T.meta_var(thread % SHARERS)
        channel = T.meta_var(base + first + T.cast(thread // SHARERS, "int64"))

        @T.inline
        def load(x, q):  # type: ignore[no-untyped-def]
            @T.inline
            def one(n):  # type: ignore[no-untyped-def]
                for e in T.vectorized(NEIGHBOURS):
                    x[n, e] = vectors[moving[n]][token, base + T.cast(at(q, part, e), "int64")]

            each(one, len(moving))

        advance(load, state, held, vectors[cell.value][token, channel], removed, total)
        if part == 0:
            put(total[0], thread // SHARERS, token, channel)

    @T.inline
    def whole(vectors, offsets, states, slots, layer, row, y, batch):  # type: ignore[no-untyped-def]
        for block in T.thread_binding(batch * T.int64(heads * slices), thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                state = T.alloc_buffer((keys,), "float32", scope="local")
                held = T.alloc_buffer((kept, keys), "float32", scope="local")
                old, new = T.meta_var(states)
                s = T.meta_var(T.truncdiv(block, T.int64(heads * slices)))
                within = T.meta_var(T.truncmod(block, T.int64(heads * slices)))
                h = T.meta_var(T.truncdiv(within, T.int64(slices)))
                first = T.meta_var(T.truncmod(within, T.int64(slices)) * T.int64(in_block))
                base = T.meta_var(h * T.int64(size))
                part = T.meta_var(thread % SHARERS)
                c = T.meta_var(first + T.cast(thread // SHARERS, "int64"))
                for q in T.unroll(keys // NEIGHBOURS):
                    for e in T.unroll(NEIGHBOURS):
                        j = T.meta_var(T.cast(at(q, part, e), "int64"))
                        source = T.meta_var(read_slot(slots, s) if pooled else s)
                        state[q * NEIGHBOURS + e] = old[index(s, source, layer, row, h, j, c)]

                        @T.inline
                        def hold(n):  # type: ignore[no-untyped-def]
                            held[n, q * NEIGHBOURS + e] = vectors[still[n]][base + j]

                        each(hold, len(still))
                if whole_head:
                    ys = T.alloc_buffer((size,), "float32", scope="shared")

                    @T.inline
                    def keep(value, at, token, channel):  # type: ignore[no-untyped-def]
                        ys[at] = value

                    single(vectors, keep, state, held, s, base, first, thread)
                elif step:

                    @T.inline
                    def write(value, at, token, channel):  # type: ignore[no-untyped-def]
                        y[token, channel] = value

                    single(vectors, write, state, held, s, base, first, thread)
                else:
                    begin = T.meta_var(T.cast(offsets[s], "int64"))
                    tokens = T.meta_var(offsets[s + 1] - offsets[s])
                    prompt(vectors, y, state, held, begin, tokens, base, first, thread)
                for q in T.unroll(keys // NEIGHBOURS):
                    for e in T.unroll(NEIGHBOURS):
                        j = T.meta_var(T.cast(at(q, part, e), "int64"))
                        target = T.meta_var(write_slot(slots, s) if pooled else s)
                        new[index(s, target, layer, row, h, j, c)] = state[q * NEIGHBOURS + e]
                if whole_head:
                    T.tvm_storage_sync("shared")
                    after(ys, s, h, base, thread)

    return whole
