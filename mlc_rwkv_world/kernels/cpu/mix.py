"""The inputs of a mix on a CPU: normalization, the previous token, and their blends, in one pass.

A blend is x m + x' (1 - m), x' being the normalized row before x, or the other way round where a
ratio is that of the previous row; it is written as the input of a packed product. The last row of
each sequence stays behind in the state. Where a kernel `keeps` them, it gives the rows, too, that a
later one blends by what it computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.layer_norm import moments, normalized
from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cpu import activation, bfloat16
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType, parallel_if_worth
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


@T.inline
def _step(x: Any, row: Any, base: Any, now: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        now[T.Ramp(j * LANES, 1, LANES)] = x[row, T.Ramp(base + j * LANES, 1, LANES)]


@T.inline
def _blend(now: Any, before: Any, ratio: Any, base: Any, values: Any) -> None:
    for j in T.unroll(ROWS // LANES):
        values[T.Ramp(j * LANES, 1, LANES)] = T.fma(
            now[T.Ramp(j * LANES, 1, LANES)],
            ratio[T.Ramp(base + j * LANES, 1, LANES)],
            before[T.Ramp(j * LANES, 1, LANES)]
            * (T.Broadcast(T.float32(1), LANES) - ratio[T.Ramp(base + j * LANES, 1, LANES)]),
        )


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


def _kept(kernel: tirx.PrimFunc, count: int, outs: int) -> tirx.PrimFunc:
    """A kernel of six blends and results, whose body has but so many."""
    return without(kernel, *_RATIOS[count:], *_OUTS[outs:])


def _types(sig: Signature) -> list[TensorType]:
    """Those of six results; what is left out is of any."""
    return [*sig.outs, *[sig.outs[0]] * (len(_OUTS) - len(sig.outs))]


def norm_mix(
    sig: Signature, eps: float, of_previous: bool = False, keeps: bool = False
) -> tirx.PrimFunc:
    """(x [B, D], weight, bias, ratios..., state, slots, layer, row) -> blends.

    Row i is the next token of sequence i. There are one to six ratios; the state's row, which
    holds the normalized row before, becomes the normalized row. If it `keeps` them, the normalized
    row and the one before, float32 [B, D], are the last results.
    """
    width, count = sig.args[0].static(1), len(sig.outs) - 2 * keeps
    layers, state_rows = sig.args[-2].static(1), sig.args[-2].static(2)
    blend, types = _blends(count, storing(sig.inputs), of_previous), _types(sig)
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
        out_a = T.match_buffer(var_a, (rows, *types[0].shape[1:]), types[0].dtype)
        out_b = T.match_buffer(var_b, (rows, *types[1].shape[1:]), types[1].dtype)
        out_c = T.match_buffer(var_c, (rows, *types[2].shape[1:]), types[2].dtype)
        out_d = T.match_buffer(var_d, (rows, *types[3].shape[1:]), types[3].dtype)
        out_e = T.match_buffer(var_e, (rows, *types[4].shape[1:]), types[4].dtype)
        out_f = T.match_buffer(var_f, (rows, *types[5].shape[1:]), types[5].dtype)
        ratios = T.meta_var((ratio_a, ratio_b, ratio_c, ratio_d, ratio_e, ratio_f))
        outs = T.meta_var((out_a, out_b, out_c, out_d, out_e, out_f))
        for row in tasks(rows):
            stat = T.alloc_buffer((2,), "float32", scope=STACK)
            part = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            before = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            moments(x, row, width, eps, stat, part)
            for group in range(width // ROWS):
                normalized(x, row, group * ROWS, stat, weight, bias, now)
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
                if keeps:
                    _store_floats(now, outs[count], row, group)
                    _store_floats(before, outs[count + 1], row, group)

    return _kept(kernel, count, len(sig.outs))


def shift_mix(sig: Signature, of_previous: bool = False, keeps: bool = False) -> tirx.PrimFunc:
    """(x [T, D], offsets, ratios..., state, slots, layer, row) -> blends, x being normalized.

    There are one to six ratios. Tasks divide channels, and walk along the sequences. If it `keeps`
    them, the rows before, float32 [T, D], are the last result.
    """
    width, count = sig.args[0].static(1), len(sig.outs) - keeps
    layers, state_rows = sig.args[-2].static(1), sig.args[-2].static(2)
    blend, types = _blends(count, storing(sig.inputs), of_previous), _types(sig)

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
        out_a = T.match_buffer(var_a, (rows, *types[0].shape[1:]), types[0].dtype)
        out_b = T.match_buffer(var_b, (rows, *types[1].shape[1:]), types[1].dtype)
        out_c = T.match_buffer(var_c, (rows, *types[2].shape[1:]), types[2].dtype)
        out_d = T.match_buffer(var_d, (rows, *types[3].shape[1:]), types[3].dtype)
        out_e = T.match_buffer(var_e, (rows, *types[4].shape[1:]), types[4].dtype)
        out_f = T.match_buffer(var_f, (rows, *types[5].shape[1:]), types[5].dtype)
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
                    if keeps:
                        _store_floats(before, outs[count], offsets[s] + step, group)
                    _step(x, offsets[s] + step, group * ROWS, before)
                for j in T.unroll(ROWS // LANES):
                    state[
                        write_slot(slots, s),
                        layer,
                        state_row,
                        T.Ramp(group * ROWS + j * LANES, 1, LANES),
                    ] = before[T.Ramp(j * LANES, 1, LANES)]

    return _kept(kernel, count, len(sig.outs))
