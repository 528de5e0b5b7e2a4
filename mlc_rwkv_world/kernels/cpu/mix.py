"""The inputs of a mix on a CPU: normalization, the previous token, and their blends, in one pass.

A blend is x m + x' (1 - m), x' being the normalized row before x, or the other way round where a
ratio is that of the previous row; it is written as the input of a packed product. The last row of
each sequence stays behind in the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cpu import activation, bfloat16
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth
from mlc_rwkv_world.storage.stored import ROWS

LANES = 8


@T.inline
def _store_floats(values: Any, out: Any, row: Any, group: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        out[row, T.Ramp(group * ROWS + j * LANES, 1, LANES)] = values[T.Ramp(j * LANES, 1, LANES)]


_STORES: dict[Inputs, Callable[..., None]] = {
    Inputs.FLOAT32: _store_floats,
    Inputs.BFLOAT16: bfloat16.store_group,
    Inputs.BYTES: activation.store_group,
}


def storing(inputs: Inputs) -> Callable[..., None]:
    """`store(values, out, row, group)`: 32 float32 values to an input of a packed product."""
    return _STORES[inputs]


def _blends(count: int, store: Callable[..., None], of_previous: bool) -> Callable[..., None]:
    """`blend(now, before, ratios, outs, row, group, values)`: `count` blends of 32 channels."""

    number = count - 1
    others: Any = _blends(number, store, of_previous) if number else None

    @T.inline
    def blend(
        now: Any, before: Any, ratios: Any, outs: Any, row: Any, group: Any, values: Any
    ) -> None:
        if number > 0:
            others(now, before, ratios, outs, row, group, values)
        if of_previous:
            _blend(before, now, ratios[number], group * ROWS, values)
        else:
            _blend(now, before, ratios[number], group * ROWS, values)
        store(values, outs[number], row, group)

    chosen: Callable[..., None] = blend
    return chosen


# The parameters of the most blends that there are.
_RATIOS = tuple(f"ratio_{letter}" for letter in "abcdef")
_OUTS = tuple(f"out_{letter}" for letter in "abcdef")


def _kept(kernel: tirx.PrimFunc, count: int) -> tirx.PrimFunc:
    """A kernel of six blends, whose body has but `count`."""
    return without(kernel, *_RATIOS[count:], *_OUTS[count:])


@T.inline
def _step(x: Any, row: Any, base: Any, now: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        now[T.Ramp(j * LANES, 1, LANES)] = x[row, T.Ramp(base + j * LANES, 1, LANES)]


@T.inline
def _blend(now: Any, before: Any, ratio: Any, base: Any, values: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        values[T.Ramp(j * LANES, 1, LANES)] = now[T.Ramp(j * LANES, 1, LANES)] * ratio[
            T.Ramp(base + j * LANES, 1, LANES)
        ] + before[T.Ramp(j * LANES, 1, LANES)] * (
            T.Broadcast(T.float32(1), LANES) - ratio[T.Ramp(base + j * LANES, 1, LANES)]
        )


@T.inline
def _moments(x: Any, row: Any, width: Any, eps: Any, stat: Any, part: Any) -> None:
    """Mean and inverse deviation of a row to stat[0] and stat[1]."""
    for j in T.unroll(4):
        part[T.Ramp(j * LANES, 1, LANES)] = T.Broadcast(T.float32(0), LANES)
    for step in range(width // ROWS):
        for j in T.unroll(4):
            part[T.Ramp(j * LANES, 1, LANES)] = (
                part[T.Ramp(j * LANES, 1, LANES)]
                + x[row, T.Ramp(step * ROWS + j * LANES, 1, LANES)]
            )
    stat[0] = T.float32(0)
    for i in range(ROWS):
        stat[0] = stat[0] + part[i]
    stat[0] = stat[0] * T.float32(1 / width)
    for j in T.unroll(4):
        part[T.Ramp(j * LANES, 1, LANES)] = T.Broadcast(T.float32(0), LANES)
    for step in range(width // ROWS):
        for j in T.unroll(4):
            part[T.Ramp(j * LANES, 1, LANES)] = part[T.Ramp(j * LANES, 1, LANES)] + (
                x[row, T.Ramp(step * ROWS + j * LANES, 1, LANES)] - T.Broadcast(stat[0], LANES)
            ) * (x[row, T.Ramp(step * ROWS + j * LANES, 1, LANES)] - T.Broadcast(stat[0], LANES))
    stat[1] = T.float32(0)
    for i in range(ROWS):
        stat[1] = stat[1] + part[i]
    stat[1] = T.float32(1) / T.sqrt(stat[1] * T.float32(1 / width) + T.float32(eps))


@T.inline
def _normalized(x: Any, row: Any, base: Any, stat: Any, weight: Any, bias: Any, now: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        now[T.Ramp(j * LANES, 1, LANES)] = (
            x[row, T.Ramp(base + j * LANES, 1, LANES)] - T.Broadcast(stat[0], LANES)
        ) * T.Broadcast(stat[1], LANES) * weight[T.Ramp(base + j * LANES, 1, LANES)] + bias[
            T.Ramp(base + j * LANES, 1, LANES)
        ]


def norm_mix(sig: Signature, eps: float, of_previous: bool = False) -> tirx.PrimFunc:
    """(x [B, D], weight, bias, ratios..., state, slots, layer, row) -> blends.

    Row i is the next token of sequence i. There are one to six ratios; the state's row, which
    holds the normalized row before, becomes the normalized row.
    """
    width, count = sig.args[0].static(1), len(sig.outs)
    layers, state_rows = sig.args[-2].static(1), sig.args[-2].static(2)
    out_type = sig.outs[0]
    blend, out_shape = _blends(count, storing(sig.inputs), of_previous), out_type.shape[1:]
    single = sig.args[0].shape[0] == 1
    tasks = parallel_if_worth(1 if single else None)

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        ratio_a: T.Buffer((width,), "float32"),
        ratio_b: T.Buffer((width,), "float32"),
        ratio_c: T.Buffer((width,), "float32"),
        ratio_d: T.Buffer((width,), "float32"),
        ratio_e: T.Buffer((width,), "float32"),
        ratio_f: T.Buffer((width,), "float32"),
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        state_row: T.int64,
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
    ) -> None:
        rows, places = T.int64(), T.int64()
        x = T.match_buffer(var_x, (rows, width), "float32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (rows, 2), "int32")
        out_a = T.match_buffer(var_a, (rows, *out_shape), out_type.dtype)
        out_b = T.match_buffer(var_b, (rows, *out_shape), out_type.dtype)
        out_c = T.match_buffer(var_c, (rows, *out_shape), out_type.dtype)
        out_d = T.match_buffer(var_d, (rows, *out_shape), out_type.dtype)
        out_e = T.match_buffer(var_e, (rows, *out_shape), out_type.dtype)
        out_f = T.match_buffer(var_f, (rows, *out_shape), out_type.dtype)
        ratios = T.meta_var((ratio_a, ratio_b, ratio_c, ratio_d, ratio_e, ratio_f))
        outs = T.meta_var((out_a, out_b, out_c, out_d, out_e, out_f))
        for row in tasks(rows):
            stat = T.alloc_buffer((2,), "float32", scope=STACK)
            part = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            before = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            _moments(x, row, width, eps, stat, part)
            for group in range(width // ROWS):
                _normalized(x, row, group * ROWS, stat, weight, bias, now)
                for j in T.unroll(ROWS // LANES):
                    before[T.Ramp(j * LANES, 1, LANES)] = state[
                        read_slot(slots, row),
                        layer,
                        state_row,
                        T.Ramp(group * ROWS + j * LANES, 1, LANES),
                    ]
                    state[
                        write_slot(slots, row),
                        layer,
                        state_row,
                        T.Ramp(group * ROWS + j * LANES, 1, LANES),
                    ] = now[T.Ramp(j * LANES, 1, LANES)]
                blend(now, before, ratios, outs, row, group, values)

    return _kept(kernel, count)


def shift_mix(sig: Signature, of_previous: bool = False) -> tirx.PrimFunc:
    """(x [T, D], offsets, ratios..., state, slots, layer, row) -> blends, x being normalized.

    There are one to six ratios. Tasks divide channels, and walk along the sequences.
    """
    width, count = sig.args[0].static(1), len(sig.outs)
    layers, state_rows = sig.args[-2].static(1), sig.args[-2].static(2)
    out_type = sig.outs[0]
    blend, out_shape = _blends(count, storing(sig.inputs), of_previous), out_type.shape[1:]

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        var_offsets: T.handle,
        ratio_a: T.Buffer((width,), "float32"),
        ratio_b: T.Buffer((width,), "float32"),
        ratio_c: T.Buffer((width,), "float32"),
        ratio_d: T.Buffer((width,), "float32"),
        ratio_e: T.Buffer((width,), "float32"),
        ratio_f: T.Buffer((width,), "float32"),
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        state_row: T.int64,
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
    ) -> None:
        rows, batch, places = T.int64(), T.int64(), T.int64()
        x = T.match_buffer(var_x, (rows, width), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        out_a = T.match_buffer(var_a, (rows, *out_shape), out_type.dtype)
        out_b = T.match_buffer(var_b, (rows, *out_shape), out_type.dtype)
        out_c = T.match_buffer(var_c, (rows, *out_shape), out_type.dtype)
        out_d = T.match_buffer(var_d, (rows, *out_shape), out_type.dtype)
        out_e = T.match_buffer(var_e, (rows, *out_shape), out_type.dtype)
        out_f = T.match_buffer(var_f, (rows, *out_shape), out_type.dtype)
        ratios = T.meta_var((ratio_a, ratio_b, ratio_c, ratio_d, ratio_e, ratio_f))
        outs = T.meta_var((out_a, out_b, out_c, out_d, out_e, out_f))
        for group in T.parallel(width // ROWS):
            now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            before = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            for s in range(batch):
                for j in T.unroll(ROWS // LANES):
                    before[T.Ramp(j * LANES, 1, LANES)] = state[
                        read_slot(slots, s),
                        layer,
                        state_row,
                        T.Ramp(group * ROWS + j * LANES, 1, LANES),
                    ]
                for step in range(offsets[s + 1] - offsets[s]):
                    _step(x, offsets[s] + step, group * ROWS, now)
                    blend(now, before, ratios, outs, offsets[s] + step, group, values)
                    _step(x, offsets[s] + step, group * ROWS, before)
                for j in T.unroll(ROWS // LANES):
                    state[
                        write_slot(slots, s),
                        layer,
                        state_row,
                        T.Ramp(group * ROWS + j * LANES, 1, LANES),
                    ] = before[T.Ramp(j * LANES, 1, LANES)]

    return _kept(kernel, count)
