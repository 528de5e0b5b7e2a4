"""Products of one row each with weights of any lengths on CUDA, in one launch.

Each product's blocks are some of the launch's; neighbours that are stored in the same way, and have
as many rows, share theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.acts import ACTS
from mlc_rwkv_world.kernels.cuda.dot import WARP, Streamed
from mlc_rwkv_world.kernels.cuda.matvec import WARPS, Rows
from mlc_rwkv_world.kernels.cuda.unrolled import each
from mlc_rwkv_world.kernels.optional import padded, without
from mlc_rwkv_world.kernels.signature import Signature

_PARAMETERS = {kind: tuple(f"{kind}_{letter}" for letter in "abcdefg") for kind in "xwsy"}
# The most products that there are, and that share blocks.
MOST = 7
_TOGETHER = 4


def suits(sig: Signature) -> bool:
    """Whether `several_rows` takes these x, of one row, and weights, pairs of tensors each."""
    count = len(sig.stored)
    if not sig.has_async_copies or count > MOST or any(x.shape[0] != 1 for x in sig.args[:count]):
        return False
    weights = _streamed(sig)
    given = zip(weights, sig.args[:count], strict=True)
    kinds = {(one.dtype, one.stored.dtype, x.dtype) for one, x in given}
    return len(kinds) == 1 and all(one.can_stream for one in weights)


def _streamed(sig: Signature) -> list[Streamed]:
    count = len(sig.stored)
    words = sig.args[count : 3 * count : 2]
    return [Streamed.of(*one) for one in zip(sig.args[:count], words, sig.stored, strict=True)]


def _groups(weights: Sequence[Streamed]) -> list[list[int]]:
    """The numbers of the products that share blocks."""
    groups: list[list[int]] = []
    for _, found in groupby(range(len(weights)), key=lambda n: weights[n]):
        numbers = list(found)
        groups += [numbers[at : at + _TOGETHER] for at in range(0, len(numbers), _TOGETHER)]
    return groups


def several_rows(sig: Signature, acts: Sequence[str]) -> tirx.PrimFunc:
    """(x [1, K] of each, weight and scale of each) -> [1, N] of each.

    A plain weight stands in for its scales. `acts` are of ACTS, what becomes of each product.
    """
    count = len(sig.stored)
    weights, x_type = _streamed(sig), sig.args[0].dtype
    groups = _groups(weights)
    plans = [
        Rows([weights[n] for n in group], x_type, 2 if len(group) == 1 else 1) for group in groups
    ]
    ends = list(accumulate(plan.blocks for plan in plans))
    begins = [0, *ends]
    # The arrays of all are one, as large as any needs.
    rings, scale_rings = zip(*(plan.rings for plan in plans), strict=True)
    ring_shape, ring_type = _largest([shape for shape, _ in rings]), rings[0][1]
    scales_shape, scales_type = _largest([shape for shape, _ in scale_rings]), scale_rings[0][1]
    parts_shape = _largest([plan.parts for plan in plans])

    words, scale_types = (sig.args[count + i : 3 * count : 2] for i in (0, 1))
    x, w, s, y = (padded(types, MOST) for types in (sig.args[:count], words, scale_types, sig.outs))

    @T.prim_func(s_tir=True)
    def kernel(
        x_a: T.Buffer(x[0].shape, x[0].dtype),
        x_b: T.Buffer(x[1].shape, x[1].dtype),
        x_c: T.Buffer(x[2].shape, x[2].dtype),
        x_d: T.Buffer(x[3].shape, x[3].dtype),
        x_e: T.Buffer(x[4].shape, x[4].dtype),
        x_f: T.Buffer(x[5].shape, x[5].dtype),
        x_g: T.Buffer(x[6].shape, x[6].dtype),
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
        y_a: T.Buffer(y[0].shape, y[0].dtype),
        y_b: T.Buffer(y[1].shape, y[1].dtype),
        y_c: T.Buffer(y[2].shape, y[2].dtype),
        y_d: T.Buffer(y[3].shape, y[3].dtype),
        y_e: T.Buffer(y[4].shape, y[4].dtype),
        y_f: T.Buffer(y[5].shape, y[5].dtype),
        y_g: T.Buffer(y[6].shape, y[6].dtype),
    ) -> None:
        xs = T.meta_var((x_a, x_b, x_c, x_d, x_e, x_f, x_g))
        ws = T.meta_var((w_a, w_b, w_c, w_d, w_e, w_f, w_g))
        scales = T.meta_var((s_a, s_b, s_c, s_d, s_e, s_f, s_g))
        ys = T.meta_var((y_a, y_b, y_c, y_d, y_e, y_f, y_g))
        for block in T.thread_binding(ends[-1], thread="blockIdx.x"):
            for warp in T.thread_binding(WARPS, thread="threadIdx.y"):
                for lane in T.thread_binding(WARP, thread="threadIdx.x"):
                    ring = T.alloc_buffer(ring_shape, ring_type, scope="shared")
                    scale_ring = T.alloc_buffer(scales_shape, scales_type, scope="shared")
                    parts = T.alloc_buffer(parts_shape, "float32", scope="shared")

                    @T.inline
                    def one(g):  # type: ignore[no-untyped-def]
                        if begins[g] <= block and block < ends[g]:
                            _block(plans[g], ys, groups[g], acts)(
                                _picked(xs, groups[g]),
                                _picked(ws, groups[g]),
                                _picked(scales, groups[g]),
                                (ring, scale_ring, parts),
                                block - begins[g],
                                warp,
                                lane,
                            )

                    each(one, len(groups))

    absent = [name for names in _PARAMETERS.values() for name in names[count:]]
    return without(kernel, *absent)


def _block(plan: Rows, ys: Sequence[Any], group: Sequence[int], acts: Sequence[str]) -> Any:
    """One block's rows of the products that share it, to their results."""
    rows, count = plan.rows, len(group)

    @T.inline
    def store(total, row):  # type: ignore[no-untyped-def]
        @T.inline
        def one(n):  # type: ignore[no-untyped-def]
            for r in T.unroll(rows):
                ys[group[n]][0, row + r] = T.cast(
                    ACTS[acts[group[n]]](total[n * rows + r]), ys[group[n]].dtype
                )

        each(one, count)

    return plan.block(store)


def _picked(tensors: Sequence[Any], group: Sequence[int]) -> list[Any]:
    return [tensors[n] for n in group]


def _largest(shapes: Sequence[Sequence[int]]) -> list[int]:
    return [max(extents) for extents in zip(*shapes, strict=True)]
