"""Products of float16 on the matrix units of Apple's GPUs, with float32 sums."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.s_tir.dlight.gpu.matmul import (
    auto_inline_consumer_chain,
    auto_inline_producers,
    get_in_out_dtypes,
    get_index_map,
    get_reduction_blocks,
)
from tvm.target import Target

from mlc_rwkv_world.kernels.metal import intrinsics as intrinsics

# What a threadgroup computes, y [32, 64], with 32 of K in its memory at a time. The sums take more
# of that than either input, so that they get memory of their own: TVM would reuse that of a larger
# one, and then refuses a pointer to float32 in it.
_ROWS, _OUTER, _DEPTH = 32, 64, 32
# Its simdgroups lie side by side along the rows of W.
_SIMDGROUPS, _LANES, _VECTOR = 4, 32, 4
_MATRIX = intrinsics.SIZE


class MatmulMetal(ScheduleRule):  # type: ignore[misc]
    """y [M, N] float32 = sums of x [M, K] W [N, K], both float16, with what is fused around it."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> Schedule | None:
        if not isinstance(func, tirx.PrimFunc) or target.kind.name != "metal":
            return None
        sch = Schedule(func)
        products = get_reduction_blocks(sch, sch.get_child_blocks(get_root_block(sch)))
        if products is None or not _suits(sch.get(products[0])):
            return None
        intrinsics.register()
        _schedule(sch, products[0])
        return sch


def _suits(product: Any) -> bool:
    if get_index_map(product) is None:
        return False
    # Both inputs have the type of x.
    return tuple(map(str, get_in_out_dtypes(product))) == ("float16", "float32")


def _schedule(sch: Schedule, product: Any) -> None:
    parts = [("read", 0), ("read", 1), ("write", 0)]
    x, w, y = (sch.reindex(product, part) for part in parts)
    whole, of_x, of_w, of_y = get_index_map(sch.get(product))
    sch.transform_layout(x, ("write", 0), of_x)
    sch.transform_layout(w, ("write", 0), of_w)
    sch.transform_layout(y, ("read", 0), of_y)
    sch.transform_block_layout(product, whole)
    sch.pad_einsum(product, [1, _ROWS, _OUTER, _DEPTH])

    batch, i, j, k = sch.get_loops(product)
    i_tile, i_matrix, i_in = sch.split(i, [None, _ROWS // _MATRIX, _MATRIX])
    matrices = _OUTER // _SIMDGROUPS // _MATRIX
    j_tile, simdgroup, j_matrix, j_in = sch.split(j, [None, _SIMDGROUPS, matrices, _MATRIX])
    k_tile, k_matrix, k_in = sch.split(k, [None, _DEPTH // _MATRIX, _MATRIX])
    sch.reorder(i_tile, j_tile, simdgroup, k_tile, k_matrix, i_matrix, j_matrix, i_in, j_in, k_in)
    places = ("blockIdx.z", "blockIdx.x", "blockIdx.y", "threadIdx.y")
    for loop, place in zip((batch, i_tile, j_tile, simdgroup), places, strict=True):
        sch.bind(loop, place)

    for index in (0, 1):
        tile = sch.cache_read(product, index, "shared")
        sch.compute_at(tile, k_tile, preserve_unit_loops=True)
        _share(sch, tile)
        auto_inline_producers(sch, tile)
    x_matrix = sch.cache_read(product, 0, "metal.simdgroup")
    w_matrix = sch.cache_read(product, 1, "metal.simdgroup")
    sch.compute_at(x_matrix, k_matrix)
    sch.compute_at(w_matrix, k_matrix)
    sch.transform_layout(w_matrix, ("write", 0), lambda s, n, k: (s, k, n))
    stored = sch.cache_write(product, 0, "metal.simdgroup")
    rounded = sch.cache_write(stored, 0, "shared")
    sch.reverse_compute_at(stored, simdgroup, preserve_unit_loops=True)
    sch.reverse_compute_at(rounded, j_tile, preserve_unit_loops=True)

    cleared = sch.decompose_reduction(product, k_tile)
    _tensorize(sch, x_matrix, intrinsics.LOAD)
    _tensorize(sch, w_matrix, intrinsics.LOAD_TRANSPOSED)
    _tensorize(sch, stored, intrinsics.STORE)
    _tensorize(sch, cleared, intrinsics.CLEAR)
    sch.tensorize(sch.get_loops(product)[-3], intrinsics.MULTIPLY)
    auto_inline_consumer_chain(sch, rounded)
    _share(sch, rounded)


def _share(sch: Schedule, block: Any) -> None:
    """Divides a tile's copying between the threads, some neighbouring values at a time."""
    values = sch.fuse(*sch.get_loops(block)[-2:])
    _, simdgroup, lane, vector = sch.split(values, [None, _SIMDGROUPS, _LANES, _VECTOR])
    sch.bind(simdgroup, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)


def _tensorize(sch: Schedule, block: Any, intrinsic: str) -> None:
    *_, i, j = sch.get_loops(block)
    i_out, i_in = sch.split(i, [None, _MATRIX])
    j_out, j_in = sch.split(j, [None, _MATRIX])
    sch.reorder(i_out, j_out, i_in, j_in)
    sch.tensorize(i_in, intrinsic)
