"""The products of a channel mix, and the residual products, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import sigmoid
from mlc_rwkv_world.kernels.cpu.mix import LANES, storing
from mlc_rwkv_world.kernels.cpu.product import COLUMNS_AHEAD, Product
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
    return without(_residual(sig, gated=False, sparse=False, factor=1.0), "gate")


def sparse_residual(sig: Signature) -> tirx.PrimFunc:
    """`residual` where many of x are zero, as behind a ReLU."""
    return without(_residual(sig, gated=False, sparse=True, factor=1.0), "gate")


def gated_residual(sig: Signature, factor: float) -> tirx.PrimFunc:
    """(x, W, gate [T, D], residual [T, D]) -> (residual + gate * W x) * factor, x behind a ReLU."""
    return _residual(sig, gated=True, sparse=True, factor=factor)


def _residual(sig: Signature, *, gated: bool, sparse: bool, factor: float) -> tirx.PrimFunc:
    x_type, w_type = sig.args[0], sig.args[1]
    width = sig.outs[0].static(1)
    product = Product(x_type, w_type, sig.stored[0], sig)
    multiply, tokens = product.tile(), product.tokens
    streams, tasks = product.streams, product.tasks
    x_shape, w_shape = x_type.shape[1:], w_type.shape

    @T.inline
    def finish(
        total: Any, at: Any, token: Any, block: Any, gate: Any, before: Any, after: Any
    ) -> None:
        for j in T.unroll(ROWS // LANES):
            if gated:
                after[token, _at(block, j)] = T.fma(
                    gate[token, _at(block, j)],
                    total[_at(at, j)],
                    before[token, _at(block, j)],
                ) * T.Broadcast(T.float32(factor), LANES)
            else:
                after[token, _at(block, j)] = before[token, _at(block, j)] + total[_at(at, j)]

    if sparse and product.reads_columns:
        return _sparse(sig, product, finish)

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
                        finish(
                            total,
                            s * tokens + t,
                            tile * tokens + t,
                            task + s * tasks,
                            gate,
                            before,
                            after,
                        )

    return kernel


def _sparse(sig: Signature, product: Product, finish: Callable[..., None]) -> tirx.PrimFunc:
    """`_residual` of one row that reads no column of the weight for a zero.

    That changes no bit: what such a column adds is zero.
    """
    w_type, width, inner = sig.args[1], sig.outs[0].static(1), product.inner
    multiply, streams, tasks = product.columns(), product.streams, product.tasks
    room = inner + COLUMNS_AHEAD + 1

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((1, inner), "float32"),
        w: T.Buffer(w_type.shape, w_type.dtype),
        gate: T.Buffer((1, width), "float32"),
        before: T.Buffer((1, width), "float32"),
        after: T.Buffer((1, width), "float32"),
    ) -> None:
        # How many there are stands behind them.
        ids = T.alloc_buffer((room,), "int32", scope="global")
        count = T.alloc_buffer((1,), "int32", scope=STACK)
        count[0] = 0
        for k in range(inner):
            ids[count[0]] = k
            # What is not a number is no zero.
            count[0] = count[0] + T.Select(x[0, k] == T.float32(0), 0, 1)
        for k in range(COLUMNS_AHEAD):
            ids[count[0] + k] = 0
        ids[room - 1] = count[0]
        for task in T.parallel(tasks):
            # Threads see memory, and not the buffer above.
            chosen = T.decl_buffer((room,), "int32", data=ids.data)
            total = T.alloc_buffer((streams * ROWS,), "float32", scope=STACK)
            multiply(x, w, task, chosen, chosen[room - 1], total)
            for s in range(streams):
                finish(total, s, 0, task + s * tasks, gate, before, after)

    return kernel
