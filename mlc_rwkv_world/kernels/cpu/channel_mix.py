"""The products of a channel mix, and the residual products, on a CPU."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import sigmoid
from mlc_rwkv_world.kernels.cpu.mix import LANES, storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.cpu.several import Ended, Several
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature
from mlc_rwkv_world.storage.stored import ROWS


def _at(block: Any, j: Any) -> Any:
    """Vector j of a block of 32."""
    return T.Ramp(block * ROWS + j * LANES, 1, LANES)


def _squared_relu(value: Any, _lanes: int = LANES) -> Any:
    positive = T.max(value, T.Broadcast(T.float32(0), LANES))
    # A maximum forgets what is not a number; a product with zero keeps it.
    return T.fma(positive, positive, value * T.Broadcast(T.float32(0), LANES))


def key_receptance(sig: Signature) -> tirx.PrimFunc:
    """(xk, xr, Wk, Wr) -> relu(Wk xk)^2 as a product's input, sigmoid(Wr xr) float32 [T, D]."""
    x_type, k_type, r_type, out_type = *sig.args[1:4], sig.outs[0]
    width = sig.outs[1].static(1)
    product = Product(x_type, k_type, sig.stored[0], sig)
    multiply, tokens = product.tile(), product.tokens
    gate = Product(x_type, r_type, sig.stored[1], sig)
    gate_multiply = gate.tile()
    store = storing(sig.inputs)
    x_shape, k_shape, r_shape = x_type.shape[1:], k_type.shape, r_type.shape
    out_shape = out_type.shape[1:]
    key_streams, key_tasks = product.streams, product.tasks
    gate_streams, gate_tasks = gate.streams, gate.tasks
    sums = max(key_streams, gate_streams) * tokens * ROWS

    @T.prim_func(s_tir=True)
    def kernel(
        var_xk: T.handle,
        var_xr: T.handle,
        wk: T.Buffer(k_shape, k_type.dtype),
        wr: T.Buffer(r_shape, r_type.dtype),
        var_k: T.handle,
        var_r: T.handle,
    ) -> None:
        rows = T.int64()
        xk = T.match_buffer(var_xk, (rows, *x_shape), x_type.dtype)
        xr = T.match_buffer(var_xr, (rows, *x_shape), x_type.dtype)
        k = T.match_buffer(var_k, (rows, *out_shape), out_type.dtype)
        r = T.match_buffer(var_r, (rows, width), "float32")
        for task in T.parallel(key_tasks + gate_tasks):
            total = T.alloc_buffer((sums,), "float32", scope=STACK)
            values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                if task < key_tasks:
                    multiply(xk, wk, task, tile, rows, total)
                    for s in range(key_streams):
                        for t in range(T.min(tokens, rows - tile * tokens)):
                            for j in T.unroll(ROWS // LANES):
                                values[_at(0, j)] = _squared_relu(total[_at(s * tokens + t, j)])
                            store(values, k, tile * tokens + t, task + s * key_tasks)
                else:
                    gate_multiply(xr, wr, task - key_tasks, tile, rows, total)
                    for s in range(gate_streams):
                        for t in range(T.min(tokens, rows - tile * tokens)):
                            for j in T.unroll(ROWS // LANES):
                                r[tile * tokens + t, _at(task - key_tasks + s * gate_tasks, j)] = (
                                    sigmoid(total[_at(s * tokens + t, j)], LANES)
                                )

    return kernel


def key(sig: Signature) -> tirx.PrimFunc:
    """(x, W) -> relu(W x)^2 as a product's input."""
    x_type, w_type, out_type = *sig.args, *sig.outs
    product = Product(x_type, w_type, sig.stored[0], sig)
    several = Several([Ended(product, _squared_relu, storing(sig.inputs))])
    run, tasks = several.task(), several.tasks
    x_shape, w_shape, out_shape = x_type.shape[1:], w_type.shape, out_type.shape[1:]

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, w: T.Buffer(w_shape, w_type.dtype), var_out: T.handle) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, *x_shape), x_type.dtype)
        out = T.match_buffer(var_out, (rows, *out_shape), out_type.dtype)
        for task in T.parallel(tasks):
            run(task, [(x, w, out)], rows)

    return kernel


def residual(sig: Signature) -> tirx.PrimFunc:
    """(x, W, residual [T, D]) -> residual + W x."""
    return without(_residual(sig, gated=False, factor=1.0), "gate")


def gated_residual(sig: Signature, factor: float) -> tirx.PrimFunc:
    """(x, W, gate [T, D], residual [T, D]) -> (residual + gate * W x) * factor."""
    return _residual(sig, gated=True, factor=factor)


def _residual(sig: Signature, gated: bool, factor: float) -> tirx.PrimFunc:
    x_type, w_type = sig.args[0], sig.args[1]
    width = sig.outs[0].static(1)
    product = Product(x_type, w_type, sig.stored[0], sig)
    multiply, tokens = product.tile(), product.tokens
    streams, tasks = product.streams, product.tasks
    x_shape, w_shape = x_type.shape[1:], w_type.shape

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        w: T.Buffer(w_shape, w_type.dtype),
        var_gate: T.handle,
        var_before: T.handle,
        var_after: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, *x_shape), x_type.dtype)
        gate = T.match_buffer(var_gate, (rows, width), "float32")
        before = T.match_buffer(var_before, (rows, width), "float32")
        after = T.match_buffer(var_after, (rows, width), "float32")
        for task in T.parallel(tasks):
            total = T.alloc_buffer((streams * tokens * ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                multiply(x, w, task, tile, rows, total)
                for s in range(streams):
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for j in T.unroll(ROWS // LANES):
                            if gated:
                                after[tile * tokens + t, _at(task + s * tasks, j)] = T.fma(
                                    gate[tile * tokens + t, _at(task + s * tasks, j)],
                                    total[_at(s * tokens + t, j)],
                                    before[tile * tokens + t, _at(task + s * tasks, j)],
                                ) * T.Broadcast(T.float32(factor), LANES)
                            else:
                                after[tile * tokens + t, _at(task + s * tasks, j)] = (
                                    before[tile * tokens + t, _at(task + s * tasks, j)]
                                    + total[_at(s * tokens + t, j)]
                                )

    return kernel
