"""`x W^T` for one row x on CUDA (decode)."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.dot_cuda import LANES, Stored, Stream, pipeline, sum_over_warp
from mlc_rwkv_world.kernels.signature import Signature

WARPS = 4
STAGES = 4
# Warps that fill a large GPU; where the rows are fewer, several warps share one.
_ENOUGH_WARPS = 2048


def divide(outer: int, steps: int, most_rows: int) -> tuple[int, int]:
    """(rows of a warp, warps that share them) for `outer` rows of `steps` steps each."""
    rows = next(r for r in (2, 1) if r <= most_rows and outer % r == 0)
    splits = 1
    while splits < WARPS and outer // rows * splits < _ENOUGH_WARPS and steps >= 2 * splits:
        splits *= 2
    return rows, splits


def matvec(sig: Signature) -> tirx.PrimFunc:
    """(x [1, K], weight...) -> [1, N] in the type of the signature's result."""
    stored = Stored.of(sig.args[0], list(sig.args[1:]))
    outer, inner, x_type, y_type = stored.outer, stored.inner, sig.args[0].dtype, sig.outs[0].dtype
    rows, splits = divide(outer, stored.steps, 2)
    stream = Stream(stored, rows, STAGES, splits)
    together = WARPS // splits
    blocks = -(-outer // (rows * together))
    start_row, add_step = stream.start(), stream.add(x_type, rows)
    ring_shape, ring_type = stream.ring(WARPS)
    scales_shape, scales_type = stream.scale_ring(WARPS)

    @T.inline
    def run(x, weight, scale, y):  # type: ignore[no-untyped-def]
        for block in T.thread_binding(blocks, thread="blockIdx.x"):
            for warp in T.thread_binding(WARPS, thread="threadIdx.y"):
                for lane in T.thread_binding(LANES, thread="threadIdx.x"):
                    ring = T.alloc_buffer(ring_shape, ring_type, scope="shared")
                    scales = T.alloc_buffer(scales_shape, scales_type, scope="shared")
                    total = T.alloc_buffer((rows,), "float32", scope="local")
                    row = T.meta_var((block * together + warp // splits) * rows)
                    part = T.meta_var(warp % splits)
                    for r in T.unroll(rows):
                        total[r] = T.float32(0)

                    @T.inline
                    def start(turn):  # type: ignore[no-untyped-def]
                        for r in T.unroll(rows):
                            start_row(
                                ring, scales, weight, scale, warp, r,
                                T.min(row + r, outer - 1), lane, part, turn,
                            )  # fmt: skip

                    @T.inline
                    def add(turn):  # type: ignore[no-untyped-def]
                        add_step(total, ring, scales, x, warp, 0, lane, part, turn)

                    pipeline(stream.turns, STAGES, start, add)()
                    sum_over_warp(total, rows)
                    if splits > 1:
                        parts = T.alloc_buffer((WARPS, rows), "float32", scope="shared")
                        if lane == 0:
                            for r in T.unroll(rows):
                                parts[warp, r] = total[r]
                        T.tvm_storage_sync("shared")
                        for r in T.unroll(rows):
                            total[r] = T.float32(0)
                            for s in T.unroll(splits):
                                total[r] = total[r] + parts[warp // splits * splits + s, r]
                    if lane == 0 and part == 0 and row < outer:
                        for r in T.unroll(rows):
                            y[0, row + r] = T.cast(total[r], y_type)

    if stored.bits:
        words, groups, s_type = stored.width, stored.groups, stored.scale_dtype

        @T.prim_func(s_tir=True)
        def grouped(
            x: T.Buffer((1, inner), x_type),
            q_weight: T.Buffer((outer, words), "uint32"),
            q_scale: T.Buffer((outer, groups), s_type),
            y: T.Buffer((1, outer), y_type),
        ) -> None:
            T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
            run(x, q_weight, q_scale, y)

        return grouped

    w_type = stored.dtype

    @T.prim_func(s_tir=True)
    def plain(
        x: T.Buffer((1, inner), x_type),
        weight: T.Buffer((outer, inner), w_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        run(x, weight, weight, y)

    return plain
