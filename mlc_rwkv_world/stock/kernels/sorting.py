"""Probabilities of a whole vocabulary in order, and their sums, on every GPU.

TVM has both for some GPUs: its sort asks for workgroups whose size is known when they are launched,
which WGSL has not, and its sums read what other threads write at that moment.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

_THREADS = 256
# What a workgroup sorts in the memory that its threads share: a pair for each of them.
_TILE = 2 * _THREADS
_TILE_LOG = _TILE.bit_length() - 1
# What a thread adds up by itself, before the threads of a workgroup do.
_OWN = 4
_SUM_STEPS = _THREADS.bit_length() - 1
# Behind every probability.
_NOTHING, _NOBODY = -3e38, 2**31 - 1


@T.inline
def _read(values, ids, row, tile, thread, size, held, held_ids):  # type: ignore[no-untyped-def]
    """A tile of a row; what lies beyond the row comes after all others."""
    for side in T.serial(T.int64(2)):
        n = T.meta_var(side * _THREADS + thread)
        place = T.meta_var(tile * _TILE + n)
        held[n] = T.if_then_else(place < size, values[row, place], T.float32(_NOTHING))
        held_ids[n] = T.if_then_else(place < size, ids[row, place], T.int32(_NOBODY))


@T.inline
def _write(values, ids, row, tile, thread, size, held, held_ids):  # type: ignore[no-untyped-def]
    T.tvm_storage_sync("shared")
    for side in T.serial(T.int64(2)):
        n = T.meta_var(side * _THREADS + thread)
        place = T.meta_var(tile * _TILE + n)
        if place < size:
            values[row, place] = held[n]
            ids[row, place] = held_ids[n]


@T.inline
def _order(held, held_ids, a, b, kept, kept_ids):  # type: ignore[no-untyped-def]
    """Places a and b of a tile: the greater value comes first, or the lower id of the same one."""
    T.tvm_storage_sync("shared")
    kept[0] = held[a]
    kept_ids[0] = held_ids[a]
    kept[1] = held[b]
    kept_ids[1] = held_ids[b]
    T.tvm_storage_sync("shared")
    if T.Or(kept[1] > kept[0], T.And(kept[1] == kept[0], kept_ids[1] < kept_ids[0])):
        held[a] = kept[1]
        held_ids[a] = kept_ids[1]
        held[b] = kept[0]
        held_ids[b] = kept_ids[0]


def argsort(vocab_size: int) -> tirx.PrimFunc:
    """Probabilities [B, V] float32 -> themselves from the greatest down, and their ids int32.

    Of equal ones the lower id comes first. A bitonic sort (Batcher 1968) whose stages begin with
    mirrored pairs, so that what comes first always goes to the left: what lies beyond V, which
    comes after all others, never moves and needs no memory.
    """
    size = vocab_size
    stages = max(0, (size - 1).bit_length() - _TILE_LOG)
    tiles = -(-size // _TILE)
    # Of a row that is as long as the next power of two.
    blocks = (_TILE << stages) // _TILE

    @T.prim_func(s_tir=True)
    def kernel(var_probs: T.handle, var_values: T.handle, var_ids: T.handle) -> None:
        batch = T.int64()
        probs = T.match_buffer(var_probs, (batch, size), "float32")
        values = T.match_buffer(var_values, (batch, size), "float32")
        ids = T.match_buffer(var_ids, (batch, size), "int32")
        for row in T.thread_binding(batch, thread="blockIdx.y"):
            for block in T.thread_binding(T.int64(tiles), thread="blockIdx.x"):
                for thread in T.thread_binding(T.int64(_THREADS), thread="threadIdx.x"):
                    for side in T.serial(T.int64(2)):
                        place = T.meta_var(block * _TILE + side * _THREADS + thread)
                        if place < size:
                            values[row, place] = probs[row, place]
                            ids[row, place] = T.cast(place, "int32")
        for row in T.thread_binding(batch, thread="blockIdx.y"):
            for tile in T.thread_binding(T.int64(tiles), thread="blockIdx.x"):
                for thread in T.thread_binding(T.int64(_THREADS), thread="threadIdx.x"):
                    held = T.alloc_buffer((_TILE,), "float32", scope="shared")
                    held_ids = T.alloc_buffer((_TILE,), "int32", scope="shared")
                    kept = T.alloc_buffer((2,), "float32", scope="local")
                    kept_ids = T.alloc_buffer((2,), "int32", scope="local")
                    _read(values, ids, row, tile, thread, size, held, held_ids)
                    for stage in T.serial(T.int64(_TILE_LOG)):
                        half = T.meta_var(T.int64(1) << stage)
                        begin = T.meta_var((thread >> stage) * half * 2)
                        offset = T.meta_var(thread & (half - 1))
                        _order(
                            held,
                            held_ids,
                            begin + offset,
                            begin + half * 2 - 1 - offset,
                            kept,
                            kept_ids,
                        )
                        for step in T.serial(stage):
                            log = T.meta_var(stage - 1 - step)
                            near = T.meta_var(T.int64(1) << log)
                            first = T.meta_var((thread >> log) * near * 2 + (thread & (near - 1)))
                            _order(held, held_ids, first, first + near, kept, kept_ids)
                    _write(values, ids, row, tile, thread, size, held, held_ids)
        for stage in T.serial(T.int64(stages)):
            for step in T.serial(stage + 1):
                for row in T.thread_binding(batch, thread="blockIdx.y"):
                    for block in T.thread_binding(T.int64(blocks), thread="blockIdx.x"):
                        for thread in T.thread_binding(T.int64(_THREADS), thread="threadIdx.x"):
                            pair = T.meta_var(block * _THREADS + thread)
                            log = T.meta_var(stage + _TILE_LOG - step)
                            half = T.meta_var(T.int64(1) << log)
                            begin = T.meta_var((pair >> log) * half * 2)
                            offset = T.meta_var(pair & (half - 1))
                            a = T.meta_var(begin + offset)
                            b = T.meta_var(
                                begin + T.Select(step == 0, half * 2 - 1 - offset, half + offset)
                            )
                            if b < size:
                                x: T.let[T.float32] = values[row, a]
                                y: T.let[T.float32] = values[row, b]
                                i: T.let[T.int32] = ids[row, a]
                                j: T.let[T.int32] = ids[row, b]
                                if T.Or(y > x, T.And(y == x, j < i)):
                                    values[row, a] = y
                                    values[row, b] = x
                                    ids[row, a] = j
                                    ids[row, b] = i
            for row in T.thread_binding(batch, thread="blockIdx.y"):
                for tile in T.thread_binding(T.int64(tiles), thread="blockIdx.x"):
                    for thread in T.thread_binding(T.int64(_THREADS), thread="threadIdx.x"):
                        held = T.alloc_buffer((_TILE,), "float32", scope="shared")
                        held_ids = T.alloc_buffer((_TILE,), "int32", scope="shared")
                        kept = T.alloc_buffer((2,), "float32", scope="local")
                        kept_ids = T.alloc_buffer((2,), "int32", scope="local")
                        _read(values, ids, row, tile, thread, size, held, held_ids)
                        for step in T.serial(T.int64(_TILE_LOG)):
                            log = T.meta_var(_TILE_LOG - 1 - step)
                            near = T.meta_var(T.int64(1) << log)
                            first = T.meta_var((thread >> log) * near * 2 + (thread & (near - 1)))
                            _order(held, held_ids, first, first + near, kept, kept_ids)
                        _write(values, ids, row, tile, thread, size, held, held_ids)

    return kernel


def sums(vocab_size: int) -> tirx.PrimFunc:
    """Values [B, V] float32 -> the sum of each row up to each of its values.

    A workgroup walks along a row; its threads' sums are added by doubling (Hillis & Steele 1986).
    """
    size, wide = vocab_size, _THREADS * _OWN

    @T.prim_func(s_tir=True)
    def kernel(var_values: T.handle, var_sums: T.handle) -> None:
        batch = T.int64()
        values = T.match_buffer(var_values, (batch, size), "float32")
        sums = T.match_buffer(var_sums, (batch, size), "float32")
        for row in T.thread_binding(batch, thread="blockIdx.x"):
            for thread in T.thread_binding(T.int64(_THREADS), thread="threadIdx.x"):
                parts = T.alloc_buffer((2, _THREADS), "float32", scope="shared")
                own = T.alloc_buffer((_OWN,), "float32", scope="local")
                before = T.alloc_buffer((1,), "float32", scope="local")
                before[0] = T.float32(0)
                for tile in T.serial(T.int64(-(-size // wide))):
                    for i in T.unroll(T.int64(_OWN)):
                        place = T.meta_var(tile * wide + thread * _OWN + i)
                        own[i] = T.if_then_else(place < size, values[row, place], T.float32(0))
                        if i > 0:
                            own[i] = own[i] + own[i - 1]
                    # All have read what the tile before left there.
                    T.tvm_storage_sync("shared")
                    parts[0, thread] = own[_OWN - 1]
                    for step in T.unroll(T.int64(_SUM_STEPS)):
                        T.tvm_storage_sync("shared")
                        parts[1 - step % 2, thread] = parts[step % 2, thread] + T.if_then_else(
                            thread >= (1 << step),
                            parts[step % 2, thread - (1 << step)],
                            T.float32(0),
                        )
                    T.tvm_storage_sync("shared")
                    for i in T.unroll(T.int64(_OWN)):
                        place = T.meta_var(tile * wide + thread * _OWN + i)
                        if place < size:
                            sums[row, place] = (
                                before[0]
                                + T.if_then_else(
                                    thread > 0, parts[_SUM_STEPS % 2, thread - 1], T.float32(0)
                                )
                                + own[i]
                            )
                    before[0] = before[0] + parts[_SUM_STEPS % 2, _THREADS - 1]

    return kernel
