"""Metal's matrices of 8 x 8, which the 32 lanes of a simdgroup hold together.

TVM has them, but no product of float16 with a float32 sum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

SIZE = 8
LOAD = "simdgroup_load_8x8x8_f16_shared"
LOAD_TRANSPOSED = "simdgroup_load_8x8x8_f16_shared_trans"
CLEAR = "rwkv_world_simdgroup_clear_f32"
MULTIPLY = "rwkv_world_simdgroup_multiply_accumulate_f16_f32"
STORE = "rwkv_world_simdgroup_store_f32_shared"


@cache
def register() -> None:
    """Tells TVM those above that it lacks."""
    from tvm.s_tir.tensor_intrin import metal

    TensorIntrin.register(CLEAR, *metal.get_make_filled_simdgroup_matrix_intrin("float32"))
    TensorIntrin.register(STORE, *metal.get_simdgroup_store_intrin("float32", "shared"))
    TensorIntrin.register(MULTIPLY, *_multiply(metal.get_simdgroup_index))


def _multiply(index: Any) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """What the intrinsic means, and how it is written."""
    size = SIZE

    @T.prim_func(s_tir=True)
    def meaning(var_a: T.handle, var_b: T.handle, var_c: T.handle) -> None:
        scope = T.meta_var("metal.simdgroup")
        a = T.match_buffer(var_a, (size, size), "float16", scope=scope, offset_factor=1)
        b = T.match_buffer(var_b, (size, size), "float16", scope=scope, offset_factor=1)
        c = T.match_buffer(var_c, (size, size), "float32", scope=scope, offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:size, 0:size], a[0:size, 0:size], b[0:size, 0:size])
            T.writes(c[0:size, 0:size])
            for i, j, k in T.grid(size, size, size):
                with T.sblock(""):
                    m, n, o = T.axis.remap("SSR", [i, j, k])
                    c[m, n] = c[m, n] + T.cast(a[m, o], "float32") * T.cast(b[o, n], "float32")

    @T.prim_func(s_tir=True)
    def written(var_a: T.handle, var_b: T.handle, var_c: T.handle) -> None:
        a0, a1, b0, b1, c0, c1 = T.int32(), T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        shape = T.meta_var((size, size))
        scope = T.meta_var("metal.simdgroup")
        a = T.match_buffer(var_a, shape, "float16", scope=scope, strides=[a1, a0], offset_factor=1)
        b = T.match_buffer(var_b, shape, "float16", scope=scope, strides=[b1, b0], offset_factor=1)
        c = T.match_buffer(var_c, shape, "float32", scope=scope, strides=[c1, c0], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:size, 0:size], a[0:size, 0:size], b[0:size, 0:size])
            T.writes(c[0:size, 0:size])
            T.metal.simdgroup_multiply_accumulate(
                c.data,
                index(c, c1, size, size),
                a.data,
                index(a, a1, size, size),
                b.data,
                index(b, b1, size, size),
                c.data,
                index(c, c1, size, size),
            )

    return meaning, written
