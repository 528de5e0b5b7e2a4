"""Normalization, mixing with the previous input, and keeping this one, in one kernel.

With n = LayerNorm(x), n' the row before it and a ratio m of n: y = n * m + n' * (1 - m). Before a
sequence's first row stands the state's row, which then becomes n of the sequence's last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.layer_norm import reference as layer_norm
from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cuda.dot import WARP, sum_over_lanes
from mlc_rwkv_world.kernels.cuda.unrolled import each
from mlc_rwkv_world.kernels.formulas import token_shift
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

Array = NDArray[Any]
_MOST_THREADS = 1024
_RATIOS, _OUTS = (tuple(f"{kind}_{letter}" for letter in "abcdef") for kind in "my")
# The most ratios that there are.
MOST = len(_RATIOS)


def reference(
    x: Array,
    weight: Array,
    bias: Array,
    ratios: list[Array],
    previous: Array,
    offsets: Array,
    eps: float,
) -> tuple[list[Array], Array]:
    """x: [T, D]; previous: [B, D]; offsets: [B + 1]; the rest [D].

    The mixed values, and what the state's row becomes.
    """
    normal = layer_norm(x.astype(np.float64), weight, bias, eps)
    before = token_shift(normal, previous, offsets)
    mixed = [normal * ratio + before * (1 - ratio) for ratio in ratios]
    return mixed, normal[offsets[1:] - 1]


@T.inline
def _sum_over_block(value, parts, warps, warp, lane):  # type: ignore[no-untyped-def]
    """Replaces `value[0]` by its sum over the block's threads."""
    sum_over_lanes(value, 0, WARP)
    if lane == 0:
        parts[warp] = value[0]
    T.tvm_storage_sync("shared")
    value[0] = T.float32(0)
    for i in T.unroll(warps):
        value[0] = value[0] + parts[i]
    T.tvm_storage_sync("shared")


def norm_mix(sig: Signature, eps: float, of_previous: bool) -> tirx.PrimFunc:
    """(x [T, D], weight, bias, up to six ratios [D], offsets, state, slots, layer, row) -> [T, D].

    There are as many results as ratios, which are those of the row before where they are
    `of_previous`. Row `row` of the state's layer is read, and replaced. Where one argument less is
    given, there are no offsets: row i is the next token of sequence i.
    """
    width, x_type, y_type = sig.args[0].static(1), sig.args[0].dtype, sig.outs[0].dtype
    layers, state_rows = (sig.args[-2].static(axis) for axis in (1, 2))
    threads = min(_MOST_THREADS, -(-width // WARP) * WARP)
    warps = threads // WARP
    pieces = -(-width // threads)
    whole = pieces * threads == width
    inverse = 1.0 / width
    count = len(sig.outs)
    step = len(sig.args) == count + 5

    @T.inline
    def normalize(x, row, weight, bias, values, parts, thread):  # type: ignore[no-untyped-def]
        """Fills `values` with this thread's channels of a normalized row."""
        total = T.alloc_buffer((1,), "float32", scope="local")
        mean = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        for i in T.unroll(pieces):
            values[i] = T.float32(0)
            if whole or i * threads + thread < width:
                values[i] = T.cast(x[row, i * threads + thread], "float32")
            total[0] = total[0] + values[i]
        _sum_over_block(total, parts, warps, thread // WARP, thread % WARP)
        mean[0] = total[0] * T.float32(inverse)
        total[0] = T.float32(0)
        for i in T.unroll(pieces):
            values[i] = values[i] - mean[0]
            if whole or i * threads + thread < width:
                total[0] = total[0] + values[i] * values[i]
        _sum_over_block(total, parts, warps, thread // WARP, thread % WARP)
        total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(inverse) + T.float32(eps))
        for i in T.unroll(pieces):
            c = T.meta_var(i * threads + thread)
            if whole or c < width:
                values[i] = values[i] * total[0] * weight[c] + bias[c]

    def mix(normal: Any, last: Any, ratio: Any) -> Any:
        one, other = (last, normal) if of_previous else (normal, last)
        return T.cast(one * ratio + other * (T.float32(1) - ratio), y_type)

    @T.inline
    def mix_all(ys, ratios, row, c, normal, last):  # type: ignore[no-untyped-def]
        @T.inline
        def one(n):  # type: ignore[no-untyped-def]
            ys[n][row, c] = mix(normal, last, ratios[n][c])

        each(one, count)

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        m_a: T.Buffer((width,), "float32"),
        m_b: T.Buffer((width,), "float32"),
        m_c: T.Buffer((width,), "float32"),
        m_d: T.Buffer((width,), "float32"),
        m_e: T.Buffer((width,), "float32"),
        m_f: T.Buffer((width,), "float32"),
        var_offsets: T.handle,
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        state_row: T.int64,
        var_y_a: T.handle,
        var_y_b: T.handle,
        var_y_c: T.handle,
        var_y_d: T.handle,
        var_y_e: T.handle,
        var_y_f: T.handle,
    ) -> None:
        seq_len, batch, places = T.int64(), T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        x = T.match_buffer(var_x, (rows, width), x_type)
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        y_a = T.match_buffer(var_y_a, (rows, width), y_type)
        y_b = T.match_buffer(var_y_b, (rows, width), y_type)
        y_c = T.match_buffer(var_y_c, (rows, width), y_type)
        y_d = T.match_buffer(var_y_d, (rows, width), y_type)
        y_e = T.match_buffer(var_y_e, (rows, width), y_type)
        y_f = T.match_buffer(var_y_f, (rows, width), y_type)
        ratios = T.meta_var((m_a, m_b, m_c, m_d, m_e, m_f))
        ys = T.meta_var((y_a, y_b, y_c, y_d, y_e, y_f))
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                values = T.alloc_buffer((pieces,), "float32", scope="local")
                other = T.alloc_buffer((pieces,), "float32", scope="local")
                last = T.alloc_buffer((1,), "float32", scope="local")
                parts = T.alloc_buffer((warps,), "float32", scope="shared")
                normalize(x, row, weight, bias, values, parts, thread)
                if step:
                    for i in T.unroll(pieces):
                        c = T.meta_var(i * threads + thread)
                        if whole or c < width:
                            last[0] = state[read_slot(slots, row), layer, state_row, c]
                            mix_all(ys, ratios, row, c, values[i], last[0])
                            state[write_slot(slots, row), layer, state_row, c] = values[i]
                else:
                    sequence = T.alloc_buffer((1,), "int64", scope="local")
                    # An empty sequence has no row, and the last that begins here has it.
                    sequence[0] = T.int64(0)
                    for number in range(batch):
                        if T.cast(offsets[number], "int64") <= row:
                            sequence[0] = number
                    s = T.meta_var(sequence[0])
                    first = T.meta_var(T.cast(offsets[s], "int64") == row)
                    # Whose block begins a sequence ends it too: so its state is read before it is
                    # written, and no block waits for another.
                    end = T.meta_var(T.cast(offsets[s + 1], "int64"))
                    second = T.meta_var(T.if_then_else(first, end, row) - T.int64(1))
                    normalize(x, second, weight, bias, other, parts, thread)
                    for i in T.unroll(pieces):
                        c = T.meta_var(i * threads + thread)
                        if whole or c < width:
                            last[0] = other[i]
                            if first:
                                last[0] = state[read_slot(slots, s), layer, state_row, c]
                                state[write_slot(slots, s), layer, state_row, c] = other[i]
                            mix_all(ys, ratios, row, c, values[i], last[0])

    absent = [*_RATIOS[count:], *_OUTS[count:], *(["offsets"] if step else [])]
    return without(kernel, *absent)
