"""Products of one row with stored weights on CUDA (decode), and what follows them, in one kernel.

A weight is always two arguments, words and scales; a plain weight stands in for its own scales.
Weights [N, K], a row [1, K], results [1, N].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.acts import added, relu_square, unchanged
from mlc_rwkv_world.kernels.cuda.dot import WARP, Stream, Streamed, pipeline, sum_over_warp
from mlc_rwkv_world.kernels.cuda.unrolled import each
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

WARPS = 4
# Steps of a row that a warp has in its ring.
STAGES = 4
# Warps that fill a large GPU; where the rows are fewer, several warps share one.
_ENOUGH_WARPS = 2048


def _divide(outer: int, steps: int, most_rows: int) -> tuple[int, int]:
    """(rows of a warp, warps that share them) for `outer` rows of `steps` steps each."""
    rows = next(r for r in (2, 1) if r <= most_rows and outer % r == 0)
    splits = 1
    while splits < WARPS and outer // rows * splits < _ENOUGH_WARPS and steps >= 2 * splits:
        splits *= 2
    return rows, splits


def suits(sig: Signature) -> bool:
    """Whether `matvec` takes this call: one row, and a weight whose rows copies can start at."""
    if not sig.has_async_copies or sig.args[0].shape[0] != 1:
        return False
    return Streamed.of(sig.args[0], sig.args[1], sig.stored[0]).can_stream


def _each(products: range, action: Any, rows: int) -> Any:
    """A body that calls `action(turn, product, slot)` for some products, slots from 0 on."""
    first, count = products[0], len(products)

    @T.inline
    def body(turn):  # type: ignore[no-untyped-def]
        @T.inline
        def one(n):  # type: ignore[no-untyped-def]
            action(turn, first + n, n * rows)

        each(one, count)

    return body


class Rows:
    """How the rows of some products' `weights` are laid over blocks and warps.

    All products have the same number of rows and the same kind of storage. Products of the same
    length run together, others one after another.
    """

    def __init__(self, weights: Sequence[Streamed], x_type: str, most_rows: int) -> None:
        first = weights[0]
        self.outer, self.count = first.outer, len(weights)
        steps = min(one.steps for one in weights)
        self.rows, self.splits = _divide(self.outer, steps, most_rows)
        self.together = WARPS // self.splits
        self.blocks = -(-self.outer // (self.rows * self.together))
        self.parallel = all(one == first for one in weights)
        slots = self.rows * (self.count if self.parallel else 1)
        # A ring that holds more rows needs fewer stages to have as much under way.
        self.stages = STAGES if slots < 3 else STAGES - 1
        self.streams = [Stream(one, slots, self.stages, self.splits) for one in weights]
        self.x_type = x_type

    @property
    def rings(self) -> tuple[tuple[list[int], str], tuple[list[int], str]]:
        """Shape and type of a block's shared arrays, for the weights and for the scales."""
        return self.streams[0].ring(WARPS), self.streams[0].scale_ring(WARPS)

    @property
    def parts(self) -> list[int]:
        """Shape of the block's shared sums of warps that share rows."""
        return [WARPS, self.count * self.rows if self.splits > 1 else 1]

    def run(self, following: Any) -> Any:
        """A body `run(inputs, weights, scales)`: a whole kernel's blocks, see `block`."""
        one, blocks = self.block(following), self.blocks
        (ring_shape, ring_type), (scales_shape, scales_type) = self.rings
        parts_shape = self.parts

        @T.inline
        def body(inputs, weights, scales):  # type: ignore[no-untyped-def]
            for block in T.thread_binding(blocks, thread="blockIdx.x"):
                for warp in T.thread_binding(WARPS, thread="threadIdx.y"):
                    for lane in T.thread_binding(WARP, thread="threadIdx.x"):
                        ring = T.alloc_buffer(ring_shape, ring_type, scope="shared")
                        scale_ring = T.alloc_buffer(scales_shape, scales_type, scope="shared")
                        parts = T.alloc_buffer(parts_shape, "float32", scope="shared")
                        one(inputs, weights, scales, (ring, scale_ring, parts), block, warp, lane)

        return body

    def block(self, following: Any) -> Any:
        """A body that calls `following(total, row)` for each row of a block.

        Called as `body(inputs, weights, scales, (ring, scale_ring, parts), block, warp, lane)`.
        `total[product * rows + r]` are the sums of row `row + r` of each product.
        """
        streams, rows, outer, count = self.streams, self.rows, self.outer, self.count
        together, splits, stages = self.together, self.splits, self.stages
        parallel = self.parallel
        turns = [stream.turns for stream in streams]
        first, last = range(count if parallel else 1), range(count - 1, count)
        starts = [stream.start() for stream in streams]
        adds = [stream.add(self.x_type, rows) for stream in streams]

        @T.inline
        def body(inputs, weights, scales, shared, block, warp, lane):  # type: ignore[no-untyped-def]
            ring, scale_ring, parts = T.meta_var(shared)
            total = T.alloc_buffer((count * rows,), "float32", scope="local")
            row = T.meta_var((block * together + warp // splits) * rows)
            part = T.meta_var(warp % splits)
            for i in T.unroll(count * rows):
                total[i] = T.float32(0)

            @T.inline
            def start(turn, product, slot):  # type: ignore[no-untyped-def]
                for r in T.unroll(rows):
                    starts[product](
                        ring, scale_ring, weights[product], scales[product],
                        warp, slot + r, T.min(row + r, outer - 1), lane, part, turn,
                    )  # fmt: skip

            @T.inline
            def add(turn, product, slot):  # type: ignore[no-untyped-def]
                adds[product](
                    total, product * rows, ring, scale_ring, inputs[product],
                    warp, slot, lane, part, turn,
                )  # fmt: skip

            pipeline(turns[0], stages, _each(first, start, rows), _each(first, add, rows))()
            if not parallel:
                pipeline(turns[1], stages, _each(last, start, rows), _each(last, add, rows))()
            sum_over_warp(total, count * rows)
            if splits > 1:
                if lane == 0:
                    for i in T.unroll(count * rows):
                        parts[warp, i] = total[i]
                T.tvm_storage_sync("shared")
                for i in T.unroll(count * rows):
                    total[i] = T.float32(0)
                    for s in T.unroll(splits):
                        total[i] = total[i] + parts[warp // splits * splits + s, i]
            if lane == 0 and part == 0 and row < outer:
                following(total, row)

        return body


def matvec(sig: Signature) -> tirx.PrimFunc:
    """(x, weight, scale) -> product; a plain weight may come without a scale."""
    return _matvec(sig, unchanged)


def matvec_relu_square(sig: Signature) -> tirx.PrimFunc:
    """(x, weight, scale) -> relu(product)^2."""
    return _matvec(sig, relu_square)


def matvec_add(sig: Signature) -> tirx.PrimFunc:
    """(x, weight, scale, residual) -> residual + product."""
    return _matvec(sig, added)


def _matvec(sig: Signature, following: Callable[[Any, Any], Any]) -> tirx.PrimFunc:
    """`following(sum, residual)` in every place, the residual being the fourth tensor if any."""
    types = types_of(sig)
    # Fused kernels are given a plain weight twice; elsewhere it comes once.
    weight_type, scale_type = types[1], types[min(2, len(types) - 1)]
    plan = Rows([Streamed.of(sig.args[0], sig.args[1], sig.stored[0])], sig.args[0].dtype, 2)
    rows, outer, y_type = plan.rows, plan.outer, sig.outs[0].dtype
    (x_shape, x_type), (w_shape, w_type), (s_shape, s_type) = types[0], weight_type, scale_type
    r_type = types[3][1] if len(types) > 3 else y_type

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer(x_shape, x_type),
        weight: T.Buffer(w_shape, w_type),
        scale: T.Buffer(s_shape, s_type),
        residual: T.Buffer((1, outer), r_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:

        @T.inline
        def store(total, row):  # type: ignore[no-untyped-def]
            for r in T.unroll(rows):
                y[0, row + r] = T.cast(following(total[r], residual[0, row + r]), y_type)

        plan.run(store)((x,), (weight,), (scale,))

    return without(kernel, *("scale", "residual")[len(types) - 2 :])


def matvec_gated_add(sig: Signature, factor: float) -> tirx.PrimFunc:
    """(x0, weight0, scale0, x1, weight1, scale1, residual) -> the channel mix's result.

    factor * (residual + sigmoid(product 1) * product 0).
    """
    value_stored, gate_stored = sig.stored
    weights = [
        Streamed.of(sig.args[0], sig.args[1], value_stored),
        Streamed.of(sig.args[3], sig.args[4], gate_stored),
    ]
    plan = Rows(weights, sig.args[0].dtype, 2)
    rows, y_type = plan.rows, sig.outs[0].dtype
    (x0, x_type), (w0, w_type), (s0, s_type), (x1, _), (w1, _), (s1, _), (r, r_type) = types_of(sig)
    outer = plan.outer

    @T.prim_func(s_tir=True)
    def kernel(
        value_x: T.Buffer(x0, x_type),
        value: T.Buffer(w0, w_type),
        value_scale: T.Buffer(s0, s_type),
        gate_x: T.Buffer(x1, x_type),
        gate: T.Buffer(w1, w_type),
        gate_scale: T.Buffer(s1, s_type),
        residual: T.Buffer(r, r_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:

        @T.inline
        def store(total, row):  # type: ignore[no-untyped-def]
            for i in T.unroll(rows):
                y[0, row + i] = T.cast(
                    T.float32(factor)
                    * (
                        T.cast(residual[0, row + i], "float32")
                        + T.sigmoid(total[rows + i]) * total[i]
                    ),
                    y_type,
                )

        plan.run(store)((value_x, gate_x), (value, gate), (value_scale, gate_scale))

    return kernel


def types_of(sig: Signature) -> list[tuple[tuple[Any, ...], str]]:
    return [(arg.shape, arg.dtype) for arg in sig.args]
