"""`x W^T` for several rows of float16 x on CUDA's tensor cores, the unpacking of W inside.

Tiles of x and of the stored W flow through shared memory by asynchronous copies. A lane's part of
an operand is 8 neighbouring values of a row, 16 bytes or one word of 4-bit values: the order of K
inside a product is free as long as x and W agree. Sums are float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.dot import WARP, Streamed
from mlc_rwkv_world.kernels.cuda.intrinsics import (
    copy_async,
    copy_commit,
    copy_wait,
    mma,
    unpack,
)
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.storage import Stored

_PIECE = 16
# Values of K that are multiplied at a time, and share a scale.
_GROUP = 32
_STATIC_SHARED = 48 * 1024


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows of x and of W that a block computes: 16 * 8 products `m` by `n` a warp, and its warps.

    `groups` of 32 values of K are one stage.
    """

    warps_m: int
    warps_n: int
    m: int
    n: int
    groups: int
    most_stages: int

    @property
    def rows(self) -> int:
        """Rows of x."""
        return self.warps_m * self.m * 16

    @property
    def outer(self) -> int:
        """Rows of W."""
        return self.warps_n * self.n * 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps_m * self.warps_n * WARP


# For up to so many rows of x; the last takes the rest.
TILES: tuple[tuple[int | None, Tile], ...] = (
    (16, Tile(1, 4, 1, 1, 4, 6)),
    (64, Tile(1, 4, 4, 1, 2, 5)),
    (None, Tile(2, 4, 4, 4, 1, 4)),
)


def suits(sig: Signature) -> bool:
    """Whether the kernel takes this call: float16 x, rows of K that copies can start at."""
    (stored,) = sig.stored
    if not sig.has_async_copies or sig.args[0].dtype != "float16" or stored.dtype != "float16":
        return False
    if not stored.bits:
        return sig.args[0].static(1) % 8 == 0
    return stored in [Stored.symmetric(bits, "float16", _GROUP) for bits in (4, 8)]


def matmul(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result; any M."""
    one = Streamed.of(sig.args[0], sig.args[1], sig.stored[0])
    inner, outer, y_type = one.inner, one.outer, sig.outs[0].dtype
    (few, small), (some, middle), (_, large) = TILES
    run_small, run_middle, run_large = (_run(t, one, y_type) for t in (small, middle, large))

    width, groups = one.width, one.groups

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((outer, width), one.dtype),
        scale: T.Buffer((outer, groups), "float16"),
        var_y: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), "float16")
        y = T.match_buffer(var_y, (rows, outer), y_type)
        if rows <= few:
            run_small(x, weight, scale, y, rows)
        else:
            if rows <= some:
                run_middle(x, weight, scale, y, rows)
            else:
                run_large(x, weight, scale, y, rows)

    return kernel if one.bits else without(kernel, "scale")


def _run(tile: Tile, one: Streamed, y_type: str) -> Any:
    """A body that computes all of y [rows, outer] with one tile."""
    bits, inner, outer, depth = one.bits, one.inner, one.outer, tile.groups * _GROUP
    # Pieces of 16 bytes in a stage's row, of x and of W, and the elements of W in one.
    x_pieces = depth // 8
    w_pieces = depth * bits // 128 if bits else x_pieces
    w_piece = 4 if bits else 8
    stage_bytes = (tile.rows * x_pieces + tile.outer * w_pieces) * _PIECE
    stages = min(tile.most_stages, _STATIC_SHARED // stage_bytes)
    turns = -(-inner // depth)
    threads, warps_n, m_count, n_count = tile.threads, tile.warps_n, tile.m, tile.n
    x_copies, w_copies = tile.rows * x_pieces, tile.outer * w_pieces
    blocks_n = -(-outer // tile.outer)
    tile_rows, tile_outer, groups = tile.rows, tile.outer, tile.groups
    exact_n, width = outer % tile.outer == 0, one.width
    # Values that a lane needs of W for 8 of K, in words.
    lane_words = bits // 4 if bits else 4

    def x_place(row: Any, piece: Any) -> Any:
        # Neighbouring rows are read together, from different banks.
        return piece if groups == 1 else piece ^ (row % 2 * 4)

    def w_place(row: Any, piece: Any) -> Any:
        if bits != 4:
            return x_place(row, piece) if not bits else piece
        return piece ^ (row // (8 // groups) % groups) if groups > 1 else piece

    @T.inline
    def body(x, weight, scale, y, rows):  # type: ignore[no-untyped-def]
        for by in T.thread_binding((rows + (tile_rows - 1)) // tile_rows, thread="blockIdx.y"):
            for bx in T.thread_binding(blocks_n, thread="blockIdx.x"):
                for thread in T.thread_binding(threads, thread="threadIdx.x"):
                    xs = T.alloc_buffer((stages, tile_rows, x_pieces * 4), "uint32", scope="shared")
                    ws = T.alloc_buffer(
                        (stages, tile_outer, w_pieces * 4), "uint32", scope="shared"
                    )
                    sums = T.alloc_buffer((m_count, n_count, 4), "float32", scope="local")
                    a = T.alloc_buffer((m_count, 2, 4), "uint32", scope="local")
                    first = T.alloc_buffer((4,), "uint32", scope="local")
                    b = T.alloc_buffer((n_count, 4), "uint32", scope="local")
                    raw = T.alloc_buffer((lane_words,), "uint32", scope="local")
                    factor = T.alloc_buffer((n_count,), "float16", scope="local")
                    warp = T.meta_var(thread // WARP)
                    # A lane's row within 8, and which 8 values of 32 it has.
                    line = T.meta_var(thread % WARP // 4)
                    part = T.meta_var(thread % 4)
                    row0 = T.meta_var(warp // warps_n * (m_count * 16) + line)
                    outer0 = T.meta_var(warp % warps_n * (n_count * 8) + line)

                    @T.inline
                    def start(turn):  # type: ignore[no-untyped-def]
                        for i in T.unroll(-(-x_copies // threads)):
                            piece = T.meta_var(i * threads + thread)
                            if x_copies % threads == 0 or piece < x_copies:
                                r = T.meta_var(piece // x_pieces)
                                c = T.meta_var(piece % x_pieces)
                                k = T.meta_var(turn * depth + c * 8)
                                copy_async(
                                    T.address_of(xs[turn % stages, r, x_place(r, c) * 4]),
                                    T.address_of(
                                        x[
                                            T.min(by * tile_rows + r, rows - 1),
                                            T.if_then_else(k < inner, k, 0),
                                        ]
                                    ),
                                    T.if_then_else(k < inner, _PIECE, 0),
                                )
                        for i in T.unroll(-(-w_copies // threads)):
                            piece = T.meta_var(i * threads + thread)
                            if w_copies % threads == 0 or piece < w_copies:
                                r = T.meta_var(piece // w_pieces)
                                c = T.meta_var(piece % w_pieces)
                                k = T.meta_var((turn * w_pieces + c) * w_piece)
                                copy_async(
                                    T.address_of(ws[turn % stages, r, w_place(r, c) * 4]),
                                    T.address_of(
                                        weight[
                                            T.min(bx * tile_outer + r, outer - 1),
                                            T.if_then_else(k < width, k, 0),
                                        ]
                                    ),
                                    T.if_then_else(k < width, _PIECE, 0),
                                )

                    for i in T.unroll(m_count):
                        for j in T.unroll(n_count):
                            for e in T.unroll(4):
                                sums[i, j, e] = T.float32(0)
                    # Arrays shrink to what is seen to be written, and addresses are not looked at.
                    for j in T.unroll(n_count):
                        for e in T.unroll(4):
                            b[j, e] = T.uint32(0)
                    for turn in T.unroll(stages - 1):
                        if turn < turns:
                            start(turn)
                        copy_commit()
                    for turn in range(turns):
                        copy_wait(stages - 2)
                        T.tvm_storage_sync("shared")
                        if turn + (stages - 1) < turns:
                            start(turn + (stages - 1))
                        copy_commit()
                        for g in T.unroll(groups):
                            for j in T.unroll(n_count):
                                r = T.meta_var(outer0 + j * 8)
                                if bits == 0:
                                    for e in T.vectorized(4):
                                        b[j, e] = ws[
                                            turn % stages, r, w_place(r, g * 4 + part) * 4 + e
                                        ]
                                if bits > 0:
                                    factor[j] = scale[
                                        T.min(bx * tile_outer + r, outer - 1),
                                        T.min(turn * groups + g, inner // _GROUP - 1),
                                    ]
                                if bits == 4:
                                    raw[0] = ws[turn % stages, r, w_place(r, g) * 4 + part]
                                    unpack(
                                        T.address_of(b[j, 0]), T.address_of(raw[0]), factor[j], 4
                                    )
                                if bits == 8:
                                    for e in T.vectorized(2):
                                        raw[e] = ws[turn % stages, r, g * 8 + part * 2 + e]
                                    unpack(
                                        T.address_of(b[j, 0]), T.address_of(raw[0]), factor[j], 8
                                    )
                            for i in T.unroll(m_count):
                                for h in T.unroll(2):
                                    r = T.meta_var(row0 + i * 16 + h * 8)
                                    for e in T.vectorized(4):
                                        a[i, h, e] = xs[
                                            turn % stages, r, x_place(r, g * 4 + part) * 4 + e
                                        ]
                            for half in T.unroll(2):
                                for i in T.unroll(m_count):
                                    first[0] = a[i, 0, half * 2]
                                    first[1] = a[i, 1, half * 2]
                                    first[2] = a[i, 0, half * 2 + 1]
                                    first[3] = a[i, 1, half * 2 + 1]
                                    for j in T.unroll(n_count):
                                        mma(
                                            T.address_of(sums[i, j, 0]),
                                            T.address_of(first[0]),
                                            T.address_of(b[j, half * 2]),
                                        )
                    for i in T.unroll(m_count):
                        for j in T.unroll(n_count):
                            for e in T.unroll(4):
                                token = T.meta_var(by * tile_rows + row0 + i * 16 + e // 2 * 8)
                                n = T.meta_var(
                                    bx * tile_outer + outer0 - line + j * 8 + part * 2 + e % 2
                                )
                                if token < rows and (exact_n or n < outer):
                                    y[token, n] = T.cast(sums[i, j, e], y_type)

    return body
