"""The products of a channel mix, and the residual products, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import sigmoid
from mlc_rwkv_world.kernels.cpu.mix import LANES
from mlc_rwkv_world.kernels.cpu.product import COLUMNS_AHEAD, Product
from mlc_rwkv_world.kernels.cpu.products import End, products
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature
from mlc_rwkv_world.storage.stored import ROWS


def _at(block: Any, j: Any) -> Any:
    """Vector j of a block of 32."""
    return T.Ramp(block * ROWS + j * LANES, 1, LANES)


def _squared_relu(value: Any, _lanes: int) -> Any:
    positive = T.max(value, T.Broadcast(T.float32(0), LANES))
    # A maximum forgets what is not a number; a product with zero keeps it.
    return T.fma(positive, positive, value * T.Broadcast(T.float32(0), LANES))


def key_receptance(sig: Signature) -> tirx.PrimFunc:
    """(xk, xr, Wk, Wr) -> relu(Wk xk)^2 as a product's input, sigmoid(Wr xr) float32 [T, D]."""
    return products(sig, [End(_squared_relu, floats=False), End(sigmoid)])


def key(sig: Signature) -> tirx.PrimFunc:
    """(x, W) -> relu(W x)^2 as a product's input."""
    return products(sig, [End(_squared_relu, floats=False)])


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
