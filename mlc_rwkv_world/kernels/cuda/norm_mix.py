"""Normalization, mixing with the previous input, and keeping this one, in one kernel (decode).

With n = LayerNorm(x) and the state's row s: y_i = n * m_i + s * (1 - m_i), then s becomes n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.layer_norm import reference as layer_norm
from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda.dot import WARP
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

Array = NDArray[Any]
_MOST_THREADS = 1024


def reference(
    x: Array, weight: Array, bias: Array, ratios: list[Array], previous: Array, eps: float
) -> tuple[list[Array], Array]:
    """x, previous: [B, D]; the rest [D]. The mixed values, and what the state's row becomes."""
    normal = layer_norm(x.astype(np.float64), weight, bias, eps)
    return [normal * ratio + previous * (1 - ratio) for ratio in ratios], normal


@T.inline
def _sum_over_block(value, parts, warps, warp, lane):  # type: ignore[no-untyped-def]
    """Replaces `value[0]` by its sum over the block's threads."""
    for d in T.unroll(5):
        value[0] = value[0] + T.tvm_warp_shuffle_xor(
            T.uint32(0xFFFFFFFF), value[0], 16 >> d, WARP, WARP
        )
    if lane == 0:
        parts[warp] = value[0]
    T.tvm_storage_sync("shared")
    value[0] = T.float32(0)
    for i in T.unroll(warps):
        value[0] = value[0] + parts[i]
    T.tvm_storage_sync("shared")


def norm_mix_step(sig: Signature, eps: float) -> tirx.PrimFunc:
    """(x [B, D], weight, bias, 2 or 3 ratios [D], state, slots, layer, row) -> as many [B, D].

    Row `row` of the state's layer is read, and replaced by the normalized x.
    """
    width, x_type, y_type = sig.args[0].static(1), sig.args[0].dtype, sig.outs[0].dtype
    layers, state_rows = (sig.args[-2].static(axis) for axis in (1, 2))
    threads = min(_MOST_THREADS, -(-width // WARP) * WARP)
    warps = threads // WARP
    each = -(-width // threads)
    whole = each * threads == width
    inverse = 1.0 / width
    count = len(sig.outs)

    @T.inline
    def normalize(x, values, parts, block, thread):  # type: ignore[no-untyped-def]
        """Fills `values` with this thread's centred channels; the last is 1 / deviation."""
        total = T.alloc_buffer((1,), "float32", scope="local")
        mean = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.unroll(each):
            values[i] = T.float32(0)
            if whole or i * threads + thread < width:
                values[i] = T.cast(x[block, i * threads + thread], "float32")
            total[0] = total[0] + values[i]
        _sum_over_block(total, parts, warps, thread // WARP, thread % WARP)
        mean[0] = total[0] * T.float32(inverse)
        total[0] = T.float32(0)
        for i in T.unroll(each):
            values[i] = values[i] - mean[0]
            if whole or i * threads + thread < width:
                total[0] = total[0] + values[i] * values[i]
        _sum_over_block(total, parts, warps, thread // WARP, thread % WARP)
        values[each] = T.float32(1) / T.sqrt(total[0] * T.float32(inverse) + T.float32(eps))

    def mix(normal: Any, last: Any, ratio: Any) -> Any:
        return T.cast(normal * ratio + last * (T.float32(1) - ratio), y_type)

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        m0: T.Buffer((width,), "float32"),
        m1: T.Buffer((width,), "float32"),
        m2: T.Buffer((width,), "float32"),
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        row: T.int64,
        var_y0: T.handle,
        var_y1: T.handle,
        var_y2: T.handle,
    ) -> None:
        batch, places = T.int64(), T.int64()
        x = T.match_buffer(var_x, (batch, width), x_type)
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        y0 = T.match_buffer(var_y0, (batch, width), y_type)
        y1 = T.match_buffer(var_y1, (batch, width), y_type)
        y2 = T.match_buffer(var_y2, (batch, width), y_type)
        for block in T.thread_binding(batch, thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                values = T.alloc_buffer((each + 1,), "float32", scope="local")
                last = T.alloc_buffer((1,), "float32", scope="local")
                parts = T.alloc_buffer((warps,), "float32", scope="shared")
                normalize(x, values, parts, block, thread)
                for i in T.unroll(each):
                    c = T.meta_var(i * threads + thread)
                    if whole or c < width:
                        values[i] = values[i] * values[each] * weight[c] + bias[c]
                        last[0] = state[read_slot(slots, block), layer, row, c]
                        y0[block, c] = mix(values[i], last[0], m0[c])
                        y1[block, c] = mix(values[i], last[0], m1[c])
                        if count > 2:
                            y2[block, c] = mix(values[i], last[0], m2[c])
                        state[write_slot(slots, block), layer, row, c] = values[i]

    return kernel if count > 2 else without(kernel, "m2", "y2")
