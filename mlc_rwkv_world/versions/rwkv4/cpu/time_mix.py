"""The middle of a time mix on a CPU: key, value and receptance products, recurrence, gate.

A task computes 32 channels from end to end. The result, sigmoid(r) * wkv, is written as the input
of the output product.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.state import read_slot, write_slot
from mlc_rwkv_world.kernels.cpu.exp import exp, sigmoid
from mlc_rwkv_world.kernels.cpu.mix import LANES, storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.cpu.products import End
from mlc_rwkv_world.kernels.cpu.products import products as ended_products
from mlc_rwkv_world.kernels.signature import STACK, Signature
from mlc_rwkv_world.storage.stored import ROWS

# Rows of a layer's state, and where each lies in a local copy of 32 channels.
_A, _B, _P = 1, 2, 3


def _weights(old: Any, new: Any) -> tuple[Any, Any]:
    """e^(old - top) and e^(new - top), top being the larger: one of them is 1."""
    one = T.Broadcast(T.float32(1), LANES)
    apart = old - new
    small = exp(T.Broadcast(T.float32(0), LANES) - T.abs(apart), LANES)
    first = apart >= T.Broadcast(T.float32(0), LANES)
    return T.Select(first, one, small), T.Select(first, small, one)


def _output(a: Any, b: Any, p: Any, first: Any, k: Any, v: Any) -> Any:
    past, now = _weights(p, first + k)
    return T.fma(past, a, now * v) / T.fma(past, b, now)


def _decay(time_decay: Any) -> Any:
    return T.Broadcast(T.float32(0), LANES) - exp(time_decay, LANES)


def _vector(first: Any) -> Any:
    return T.Ramp(first, 1, LANES)


@T.inline
def _advance(
    k: Any,
    v: Any,
    r: Any,
    at: Any,
    decay: Any,
    first: Any,
    channel: Any,
    past: Any,
    weights: Any,
    values: Any,
) -> None:
    """One token of 32 channels: r * wkv to `values`; `past` holds a, b and p, [3 * 32].

    k, v and r are local, from `at` on; `weights` is room for two vectors.
    """
    for j in T.unroll(ROWS // LANES):
        values[_vector(j * LANES)] = r[_vector(at + j * LANES)] * _output(
            past[_vector(j * LANES)],
            past[_vector(ROWS + j * LANES)],
            past[_vector(2 * ROWS + j * LANES)],
            first[_vector(channel + j * LANES)],
            k[_vector(at + j * LANES)],
            v[_vector(at + j * LANES)],
        )
        past[_vector(2 * ROWS + j * LANES)] = (
            past[_vector(2 * ROWS + j * LANES)] + decay[_vector(j * LANES)]
        )
        weights[_vector(0)] = _weights(
            past[_vector(2 * ROWS + j * LANES)], k[_vector(at + j * LANES)]
        )[0]
        weights[_vector(LANES)] = _weights(
            past[_vector(2 * ROWS + j * LANES)], k[_vector(at + j * LANES)]
        )[1]
        past[_vector(j * LANES)] = T.fma(
            weights[_vector(0)],
            past[_vector(j * LANES)],
            weights[_vector(LANES)] * v[_vector(at + j * LANES)],
        )
        past[_vector(ROWS + j * LANES)] = T.fma(
            weights[_vector(0)], past[_vector(ROWS + j * LANES)], weights[_vector(LANES)]
        )
        past[_vector(2 * ROWS + j * LANES)] = T.max(
            past[_vector(2 * ROWS + j * LANES)], k[_vector(at + j * LANES)]
        )


@T.inline
def _load_past(state: Any, slot: Any, layer: Any, base: Any, past: Any) -> None:
    for row in T.unroll(3):
        for j in T.unroll(ROWS // LANES):
            past[_vector(row * ROWS + j * LANES)] = state[
                slot, layer, row + 1, _vector(base + j * LANES)
            ]


@T.inline
def _store_past(past: Any, state: Any, slot: Any, layer: Any, base: Any) -> None:
    for row in T.unroll(3):
        for j in T.unroll(ROWS // LANES):
            state[slot, layer, row + 1, _vector(base + j * LANES)] = past[
                _vector(row * ROWS + j * LANES)
            ]


def time_mix(sig: Signature) -> tirx.PrimFunc:
    """(xk, xv, xr, Wk, Wv, Wr, time_decay, time_first, state, slots, layer) -> gated.

    W are all stored alike. Row i is the next token of sequence i; the state's rows a, b and p move
    on.
    """
    x_type, w_type, out_type = sig.args[0], sig.args[3], sig.outs[0]
    layers, state_rows, width = map(int, sig.args[8].shape[1:])
    product = Product(x_type, w_type, sig.stored[0], sig)
    multiply, tokens = product.tile(), product.tokens
    streams, tasks = product.streams, product.tasks
    sums = streams * tokens * ROWS
    store = storing(sig.inputs)
    x_shape, w_shape, out_shape = x_type.shape[1:], w_type.shape, out_type.shape[1:]

    @T.prim_func(s_tir=True)
    def kernel(
        var_xk: T.handle,
        var_xv: T.handle,
        var_xr: T.handle,
        wk: T.Buffer(w_shape, w_type.dtype),
        wv: T.Buffer(w_shape, w_type.dtype),
        wr: T.Buffer(w_shape, w_type.dtype),
        time_decay: T.Buffer((width,), "float32"),
        time_first: T.Buffer((width,), "float32"),
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        var_out: T.handle,
    ) -> None:
        rows, places = T.int64(), T.int64()
        xk = T.match_buffer(var_xk, (rows, *x_shape), x_type.dtype)
        xv = T.match_buffer(var_xv, (rows, *x_shape), x_type.dtype)
        xr = T.match_buffer(var_xr, (rows, *x_shape), x_type.dtype)
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (rows, 2), "int32")
        out = T.match_buffer(var_out, (rows, *out_shape), out_type.dtype)
        for task in T.parallel(tasks):
            k = T.alloc_buffer((sums,), "float32", scope=STACK)
            v = T.alloc_buffer((sums,), "float32", scope=STACK)
            r = T.alloc_buffer((sums,), "float32", scope=STACK)
            decay = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            past = T.alloc_buffer((3 * ROWS,), "float32", scope=STACK)
            weights = T.alloc_buffer((2 * LANES,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                multiply(xk, wk, task, tile, rows, k)
                multiply(xv, wv, task, tile, rows, v)
                multiply(xr, wr, task, tile, rows, r)
                for s in range(streams):
                    for j in T.unroll(ROWS // LANES):
                        decay[_vector(j * LANES)] = _decay(
                            time_decay[_vector((task + s * tasks) * ROWS + j * LANES)]
                        )
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for j in T.unroll(ROWS // LANES):
                            r[_vector((s * tokens + t) * ROWS + j * LANES)] = sigmoid(
                                r[_vector((s * tokens + t) * ROWS + j * LANES)], LANES
                            )
                        _load_past(
                            state,
                            read_slot(slots, tile * tokens + t),
                            layer,
                            (task + s * tasks) * ROWS,
                            past,
                        )
                        _advance(
                            k,
                            v,
                            r,
                            (s * tokens + t) * ROWS,
                            decay,
                            time_first,
                            (task + s * tasks) * ROWS,
                            past,
                            weights,
                            values,
                        )
                        _store_past(
                            past,
                            state,
                            write_slot(slots, tile * tokens + t),
                            layer,
                            (task + s * tasks) * ROWS,
                        )
                        store(values, out, tile * tokens + t, task + s * tasks)

    return kernel


def products(sig: Signature) -> tirx.PrimFunc:
    """(xk, xv, xr, Wk, Wv, Wr) -> k, v, sigmoid(r), float32 [T, D]."""
    return ended_products(sig, [End(), End(), End(sigmoid)])


def recurrence(sig: Signature) -> tirx.PrimFunc:
    """(k, v, r, time_decay, time_first, offsets, state, slots, layer) -> gated, over sequences."""
    out_type = sig.outs[0]
    layers, state_rows, width = map(int, sig.args[6].shape[1:])
    store = storing(sig.inputs)
    out_shape = out_type.shape[1:]

    @T.prim_func(s_tir=True)
    def kernel(
        var_k: T.handle,
        var_v: T.handle,
        var_r: T.handle,
        time_decay: T.Buffer((width,), "float32"),
        time_first: T.Buffer((width,), "float32"),
        var_offsets: T.handle,
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        var_out: T.handle,
    ) -> None:
        rows, batch, places = T.int64(), T.int64(), T.int64()
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        r = T.match_buffer(var_r, (rows, width), "float32")
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        out = T.match_buffer(var_out, (rows, *out_shape), out_type.dtype)
        for block in T.parallel(width // ROWS):
            decay = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            past = T.alloc_buffer((3 * ROWS,), "float32", scope=STACK)
            weights = T.alloc_buffer((2 * LANES,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            k_now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            v_now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            r_now = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            for j in T.unroll(ROWS // LANES):
                decay[_vector(j * LANES)] = _decay(time_decay[_vector(block * ROWS + j * LANES)])
            for s in range(batch):
                _load_past(state, read_slot(slots, s), layer, block * ROWS, past)
                for step in range(offsets[s + 1] - offsets[s]):
                    for j in T.unroll(ROWS // LANES):
                        k_now[_vector(j * LANES)] = k[
                            offsets[s] + step, _vector(block * ROWS + j * LANES)
                        ]
                        v_now[_vector(j * LANES)] = v[
                            offsets[s] + step, _vector(block * ROWS + j * LANES)
                        ]
                        r_now[_vector(j * LANES)] = r[
                            offsets[s] + step, _vector(block * ROWS + j * LANES)
                        ]
                    _advance(
                        k_now,
                        v_now,
                        r_now,
                        0,
                        decay,
                        time_first,
                        block * ROWS,
                        past,
                        weights,
                        values,
                    )
                    store(values, out, offsets[s] + step, block)
                _store_past(past, state, write_slot(slots, s), layer, block * ROWS)

    return kernel
