"""`x W^T` for several rows of float16 x on CUDA's tensor cores, the unpacking of W inside.

Tiles of x and of the stored W flow through shared memory by asynchronous copies. A lane's part of
an operand is 8 neighbouring values of a row, 16 bytes or one word of 4-bit values: the order of K
inside a product is free as long as x and W agree. Sums are float32.

A launch may hold several products, each with an x, a W and an end of its own. Those whose W lie in
the same way share code, which chooses addresses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.acts import ACTS, added, relu_square, unchanged
from mlc_rwkv_world.kernels.cuda.dot import WARP, Streamed
from mlc_rwkv_world.kernels.cuda.intrinsics import (
    copy_async,
    copy_commit,
    copy_wait,
    either,
    mma,
    unpack,
)
from mlc_rwkv_world.kernels.cuda.unrolled import each
from mlc_rwkv_world.kernels.optional import padded, without
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored

_PIECE = 16
# Values of K that are multiplied at a time, and share a scale.
_GROUP = 32
_STATIC_SHARED = 48 * 1024
# The most products of a launch, which lie in two ways at most.
MOST, _MOST_KINDS = 7, 2


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
    """Whether `matmul` takes this call: float16 x, rows of K that copies can start at."""
    (stored,) = sig.stored
    return sig.has_async_copies and _takes(sig.args[0], stored)


def suits_several(sig: Signature) -> bool:
    """Whether `several` takes these x and weights, pairs of tensors each."""
    count = len(sig.stored)
    given = zip(sig.args[:count], sig.stored, strict=True)
    few = count <= MOST and len(set(sig.stored)) <= _MOST_KINDS
    return sig.has_async_copies and few and all(_takes(*one) for one in given)


def _takes(x: TensorType, stored: Stored) -> bool:
    if x.dtype != "float16" or stored.dtype != "float16":
        return False
    if not stored.bits:
        return x.static(1) % 8 == 0
    return stored in [Stored.symmetric(bits, "float16", _GROUP) for bits in (4, 8)]


def matmul(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result; any M."""
    return _matmul(sig, unchanged)


def matmul_relu_square(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> relu(product)^2."""
    return _matmul(sig, relu_square)


def matmul_add(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight..., residual [M, N]) -> residual + product."""
    return _matmul(sig, added)


def _matmul(sig: Signature, following: Callable[[Any, Any], Any]) -> tirx.PrimFunc:
    """`following(sum, residual)` in every place, the residual being the last tensor if any."""
    one = Streamed.of(sig.args[0], sig.args[1], sig.stored[0])
    inner, outer, y_type = one.inner, one.outer, sig.outs[0].dtype
    (few, small), (some, middle), (_, large) = TILES
    run_small, run_middle, run_large = (_run(t, [one]) for t in (small, middle, large))
    width, groups = one.width, one.groups
    given = len(sig.args) - (2 if one.bits else 1)
    r_type = sig.args[-1].dtype if given > 1 else y_type

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((outer, width), one.dtype),
        scale: T.Buffer((outer, groups), "float16"),
        var_residual: T.handle,
        var_y: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), "float16")
        residual = T.match_buffer(var_residual, (rows, outer), r_type)
        y = T.match_buffer(var_y, (rows, outer), y_type)

        @T.inline
        def store(number, token, n, total):  # type: ignore[no-untyped-def]
            y[token, n] = T.cast(following(total, residual[token, n]), y_type)

        if rows <= few:
            run_small((x,), (weight,), (scale,), rows, store)
        else:
            if rows <= some:
                run_middle((x,), (weight,), (scale,), rows, store)
            else:
                run_large((x,), (weight,), (scale,), rows, store)

    return without(kernel, *([] if one.bits else ["scale"]), *([] if given > 1 else ["residual"]))


def several(sig: Signature, acts: Sequence[str]) -> tirx.PrimFunc:
    """(x [M, K] of each, weight and scale of each) -> [M, N] of each; any M.

    A plain weight stands in for its scales. `acts` are of ACTS, what becomes of each product.
    """
    count = len(sig.stored)
    words = sig.args[count : 3 * count : 2]
    weights = [Streamed.of(*one) for one in zip(sig.args[:count], words, sig.stored, strict=True)]
    (few, small), (some, middle), (_, large) = TILES
    run_small, run_middle, run_large = (_run(t, weights) for t in (small, middle, large))

    scale_types = sig.args[count + 1 : 3 * count : 2]
    x, w, s, y = (padded(types, MOST) for types in (sig.args[:count], words, scale_types, sig.outs))

    @T.prim_func(s_tir=True)
    def kernel(
        var_x_a: T.handle,
        var_x_b: T.handle,
        var_x_c: T.handle,
        var_x_d: T.handle,
        var_x_e: T.handle,
        var_x_f: T.handle,
        var_x_g: T.handle,
        w_a: T.Buffer(w[0].shape, w[0].dtype),
        s_a: T.Buffer(s[0].shape, s[0].dtype),
        w_b: T.Buffer(w[1].shape, w[1].dtype),
        s_b: T.Buffer(s[1].shape, s[1].dtype),
        w_c: T.Buffer(w[2].shape, w[2].dtype),
        s_c: T.Buffer(s[2].shape, s[2].dtype),
        w_d: T.Buffer(w[3].shape, w[3].dtype),
        s_d: T.Buffer(s[3].shape, s[3].dtype),
        w_e: T.Buffer(w[4].shape, w[4].dtype),
        s_e: T.Buffer(s[4].shape, s[4].dtype),
        w_f: T.Buffer(w[5].shape, w[5].dtype),
        s_f: T.Buffer(s[5].shape, s[5].dtype),
        w_g: T.Buffer(w[6].shape, w[6].dtype),
        s_g: T.Buffer(s[6].shape, s[6].dtype),
        var_y_a: T.handle,
        var_y_b: T.handle,
        var_y_c: T.handle,
        var_y_d: T.handle,
        var_y_e: T.handle,
        var_y_f: T.handle,
        var_y_g: T.handle,
    ) -> None:
        rows = T.int64()
        x_a = T.match_buffer(var_x_a, (rows, x[0].shape[1]), "float16")
        x_b = T.match_buffer(var_x_b, (rows, x[1].shape[1]), "float16")
        x_c = T.match_buffer(var_x_c, (rows, x[2].shape[1]), "float16")
        x_d = T.match_buffer(var_x_d, (rows, x[3].shape[1]), "float16")
        x_e = T.match_buffer(var_x_e, (rows, x[4].shape[1]), "float16")
        x_f = T.match_buffer(var_x_f, (rows, x[5].shape[1]), "float16")
        x_g = T.match_buffer(var_x_g, (rows, x[6].shape[1]), "float16")
        y_a = T.match_buffer(var_y_a, (rows, y[0].shape[1]), y[0].dtype)
        y_b = T.match_buffer(var_y_b, (rows, y[1].shape[1]), y[1].dtype)
        y_c = T.match_buffer(var_y_c, (rows, y[2].shape[1]), y[2].dtype)
        y_d = T.match_buffer(var_y_d, (rows, y[3].shape[1]), y[3].dtype)
        y_e = T.match_buffer(var_y_e, (rows, y[4].shape[1]), y[4].dtype)
        y_f = T.match_buffer(var_y_f, (rows, y[5].shape[1]), y[5].dtype)
        y_g = T.match_buffer(var_y_g, (rows, y[6].shape[1]), y[6].dtype)
        xs = T.meta_var((x_a, x_b, x_c, x_d, x_e, x_f, x_g))
        ws = T.meta_var((w_a, w_b, w_c, w_d, w_e, w_f, w_g))
        scales = T.meta_var((s_a, s_b, s_c, s_d, s_e, s_f, s_g))
        ys = T.meta_var((y_a, y_b, y_c, y_d, y_e, y_f, y_g))

        @T.inline
        def store(number, token, n, total):  # type: ignore[no-untyped-def]
            ys[number][token, n] = T.cast(ACTS[acts[number]](total), ys[number].dtype)

        if rows <= few:
            run_small(xs, ws, scales, rows, store)
        else:
            if rows <= some:
                run_middle(xs, ws, scales, rows, store)
            else:
                run_large(xs, ws, scales, rows, store)

    absent = [f"{kind}_{letter}" for kind in "xwsy" for letter in "abcdefg"[count:]]
    return without(kernel, *absent)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Products of one launch whose weights lie in the same way: their numbers, and first blocks."""

    weights: Sequence[Streamed]
    numbers: Sequence[int]
    begins: Sequence[int]
    end: int

    def pick(self, block: Any, values: Sequence[Any]) -> Any:
        """The value of the product that a block belongs to, of one for each."""
        same = all(isinstance(value, int) and value == values[0] for value in values)
        return values[0] if same else self._picked(block, values, T.if_then_else)

    def address(self, block: Any, addresses: Sequence[Any]) -> Any:
        """As `pick`, of addresses."""
        return self._picked(block, addresses, either)

    def _picked(self, block: Any, values: Sequence[Any], choose: Callable[..., Any]) -> Any:
        *others, found = values
        for begin, value in reversed(list(zip(self.begins[1:], others, strict=True))):
            found = choose(block < begin, value, found)
        return found


def _kinds(weights: Sequence[Streamed], tile: Tile) -> list[_Kind]:
    kinds, at = [], 0
    for stored in dict.fromkeys(one.stored for one in weights):
        numbers = [n for n, one in enumerate(weights) if one.stored == stored]
        begins = []
        for n in numbers:
            begins.append(at)
            at += -(-weights[n].outer // tile.outer)
        kinds.append(_Kind([weights[n] for n in numbers], numbers, begins, at))
    return kinds


class _Depth:
    """How a stage's pieces of 16 bytes lie in shared memory, for x and for W of some bits."""

    def __init__(self, tile: Tile, bits: int) -> None:
        self.bits, self.groups = bits, tile.groups
        depth = tile.groups * _GROUP
        self.x_pieces = depth // 8
        self.w_pieces = depth * bits // 128 if bits else self.x_pieces
        # Elements of W in a piece.
        self.w_piece = 4 if bits else 8
        self.stage_bytes = (tile.rows * self.x_pieces + tile.outer * self.w_pieces) * _PIECE

    def x_place(self, row: Any, piece: Any) -> Any:
        # Neighbouring rows are read together, from different banks.
        return piece if self.groups == 1 else piece ^ (row % 2 * 4)

    def w_place(self, row: Any, piece: Any) -> Any:
        if self.bits != 4:
            return self.x_place(row, piece) if not self.bits else piece
        groups = self.groups
        return piece ^ (row // (8 // groups) % groups) if groups > 1 else piece


def _run(tile: Tile, weights: Sequence[Streamed]) -> Any:
    """A body that computes all products with one tile.

    Called as `body(inputs, weights, scales, rows, store)`; `store(number, token, n, sum)` is
    inlined.
    """
    kinds = _kinds(weights, tile)
    depths = [_Depth(tile, kind.weights[0].bits) for kind in kinds]
    stages = min(tile.most_stages, _STATIC_SHARED // max(one.stage_bytes for one in depths))
    x_pieces, w_pieces = depths[0].x_pieces, max(one.w_pieces for one in depths)
    blocks, threads, count = kinds[-1].end, tile.threads, len(kinds)
    tile_rows, tile_outer = tile.rows, tile.outer
    runs = [_block(tile, *one, stages) for one in zip(kinds, depths, strict=True)]
    begins = [kind.begins[0] for kind in kinds]

    @T.inline
    def body(inputs, weights, scales, rows, store):  # type: ignore[no-untyped-def]
        for by in T.thread_binding((rows + (tile_rows - 1)) // tile_rows, thread="blockIdx.y"):
            for bx in T.thread_binding(blocks, thread="blockIdx.x"):
                for thread in T.thread_binding(threads, thread="threadIdx.x"):
                    xs = T.alloc_buffer((stages, tile_rows, x_pieces * 4), "uint32", scope="shared")
                    ws = T.alloc_buffer(
                        (stages, tile_outer, w_pieces * 4), "uint32", scope="shared"
                    )

                    @T.inline
                    def one(kind):  # type: ignore[no-untyped-def]
                        runs[kind](inputs, weights, scales, rows, store, by, bx, thread, xs, ws)

                    if count == 1:
                        one(0)
                    else:
                        if bx < begins[1]:
                            one(0)
                        else:
                            one(1)

    return body


def _block(tile: Tile, kind: _Kind, places: _Depth, stages: int) -> Any:
    """A body that computes a block's tile of one kind's products."""
    bits, groups, numbers = places.bits, tile.groups, kind.numbers
    depth = groups * _GROUP
    x_pieces, w_pieces, w_piece = places.x_pieces, places.w_pieces, places.w_piece
    x_place, w_place, pick, address = places.x_place, places.w_place, kind.pick, kind.address
    threads, warps_n, m_count, n_count = tile.threads, tile.warps_n, tile.m, tile.n
    x_copies, w_copies = tile.rows * x_pieces, tile.outer * w_pieces
    tile_rows, tile_outer = tile.rows, tile.outer
    # Of each product.
    inners, outers = ([getattr(one, name) for one in kind.weights] for name in ("inner", "outer"))
    widths, first_blocks = [one.width for one in kind.weights], list(kind.begins)
    many_turns = [-(-one.inner // depth) for one in kind.weights]
    # Values that a lane needs of W for 8 of K, in words.
    lane_words = bits // 4 if bits else 4

    @T.inline
    def body(inputs, weights, scales, rows, store, by, bx, thread, xs, ws):  # type: ignore[no-untyped-def]
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
        inner = T.meta_var(pick(bx, inners))
        width = T.meta_var(pick(bx, widths))
        turns = T.meta_var(pick(bx, many_turns))
        # The tile's first row of its W.
        base = T.meta_var((bx - pick(bx, first_blocks)) * tile_outer)

        @T.inline
        def start(turn):  # type: ignore[no-untyped-def]
            for i in T.unroll(-(-x_copies // threads)):
                piece = T.meta_var(i * threads + thread)
                if x_copies % threads == 0 or piece < x_copies:
                    r = T.meta_var(piece // x_pieces)
                    c = T.meta_var(piece % x_pieces)
                    k = T.meta_var(turn * depth + c * 8)
                    row = T.meta_var(T.min(by * tile_rows + r, rows - 1))
                    inside = T.meta_var(T.if_then_else(k < inner, k, 0))
                    copy_async(
                        T.address_of(xs[turn % stages, r, x_place(r, c) * 4]),
                        address(bx, _addresses(inputs, numbers, [row] * len(numbers), inside)),
                        T.if_then_else(k < inner, _PIECE, 0),
                    )
            for i in T.unroll(-(-w_copies // threads)):
                piece = T.meta_var(i * threads + thread)
                if w_copies % threads == 0 or piece < w_copies:
                    r = T.meta_var(piece // w_pieces)
                    c = T.meta_var(piece % w_pieces)
                    k = T.meta_var((turn * w_pieces + c) * w_piece)
                    inside = T.meta_var(T.if_then_else(k < width, k, 0))
                    copy_async(
                        T.address_of(ws[turn % stages, r, w_place(r, c) * 4]),
                        address(
                            bx,
                            _addresses(weights, numbers, _last(base + r, outers), inside),
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
                            b[j, e] = ws[turn % stages, r, w_place(r, g * 4 + part) * 4 + e]
                    if bits > 0:
                        factor[j] = pick(
                            bx,
                            _scales(
                                scales, numbers, _last(base + r, outers), turn * groups + g, inners
                            ),
                        )
                    if bits == 4:
                        raw[0] = ws[turn % stages, r, w_place(r, g) * 4 + part]
                        unpack(T.address_of(b[j, 0]), T.address_of(raw[0]), factor[j], 4)
                    if bits == 8:
                        for e in T.vectorized(2):
                            raw[e] = ws[turn % stages, r, g * 8 + part * 2 + e]
                        unpack(T.address_of(b[j, 0]), T.address_of(raw[0]), factor[j], 8)
                for i in T.unroll(m_count):
                    for h in T.unroll(2):
                        r = T.meta_var(row0 + i * 16 + h * 8)
                        for e in T.vectorized(4):
                            a[i, h, e] = xs[turn % stages, r, x_place(r, g * 4 + part) * 4 + e]
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

        @T.inline
        def finish(i):  # type: ignore[no-untyped-def]
            for i_m in T.unroll(m_count):
                for j in T.unroll(n_count):
                    for e in T.unroll(4):
                        token = T.meta_var(by * tile_rows + row0 + i_m * 16 + e // 2 * 8)
                        n = T.meta_var(base + outer0 - line + j * 8 + part * 2 + e % 2)
                        if token < rows and (outers[i] % tile_outer == 0 or n < outers[i]):
                            store(numbers[i], token, n, sums[i_m, j, e])

        if len(numbers) == 1:
            finish(0)
        else:
            each(partial(_own, bx, [*first_blocks, kind.end], finish), len(numbers))

    return body


@T.inline
def _own(block, begins, finish, i):  # type: ignore[no-untyped-def]
    """`finish(i)` where a block is one of product i."""
    if begins[i] <= block and block < begins[i + 1]:
        finish(i)


def _addresses(
    tensors: Sequence[Any], numbers: Sequence[int], rows: Sequence[Any], column: Any
) -> list[Any]:
    return [T.address_of(tensors[n][row, column]) for n, row in zip(numbers, rows, strict=True)]


def _last(row: Any, outers: Sequence[int]) -> list[Any]:
    """The row, or a weight's last one."""
    return [T.min(row, outer - 1) for outer in outers]


def _scales(
    scales: Sequence[Any],
    numbers: Sequence[int],
    rows: Sequence[Any],
    group: Any,
    inners: Sequence[int],
) -> list[Any]:
    """A group's scale, or the last of a row."""
    each_row = zip(numbers, rows, inners, strict=True)
    return [scales[n][row, T.min(group, inner // _GROUP - 1)] for n, row, inner in each_row]
