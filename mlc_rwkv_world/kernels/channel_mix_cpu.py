"""The products of a channel mix, and the residual products, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.exp_cpu import sigmoid
from mlc_rwkv_world.kernels.mix_cpu import LANES, storing
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.packed_weight import ROWS
from mlc_rwkv_world.kernels.product_cpu import Product
from mlc_rwkv_world.kernels.signature import Signature


def _vector(first: Any) -> Any:
    return T.Ramp(first, 1, LANES)


def _squared_relu(value: Any) -> Any:
    positive = T.max(value, T.Broadcast(T.float32(0), LANES))
    # A maximum forgets what is not a number; a product with zero keeps it.
    return positive * positive + value * T.Broadcast(T.float32(0), LANES)


def key_receptance(sig: Signature) -> tirx.PrimFunc:
    """(xk, xr, Wk, Wr) -> relu(Wk xk)^2 as a product's input, sigmoid(Wr xr) float32 [T, D]."""
    x_type, k_type, r_type, out_type = *sig.args[1:4], sig.outs[0]
    width = sig.outs[1].static(1)
    product = Product(x_type, k_type, sig.target)
    multiply, tokens = product.tile(), product.tokens
    gate_multiply = Product(x_type, r_type, sig.target).tile()
    store: Callable[..., None] = storing(out_type)
    x_shape, k_shape, r_shape = x_type.shape[1:], k_type.shape, r_type.shape
    out_shape = out_type.shape[1:]
    key_blocks, gate_blocks = k_type.static(0), r_type.static(0)

    @T.prim_func(s_tir=True)
    def kernel(
        var_xk: T.handle,
        var_xr: T.handle,
        wk: T.Buffer(k_shape, k_type.dtype),
        wr: T.Buffer(r_shape, r_type.dtype),
        var_k: T.handle,
        var_r: T.handle,
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        rows = T.int64()
        xk = T.match_buffer(var_xk, (rows, *x_shape), x_type.dtype)
        xr = T.match_buffer(var_xr, (rows, *x_shape), x_type.dtype)
        k = T.match_buffer(var_k, (rows, *out_shape), out_type.dtype)
        r = T.match_buffer(var_r, (rows, width), "float32")
        for block in T.parallel(key_blocks + gate_blocks):
            total = T.alloc_buffer((tokens * ROWS,), "float32", scope="local")
            values = T.alloc_buffer((ROWS,), "float32", scope="local")
            for tile in range((rows + tokens - 1) // tokens):
                if block < key_blocks:
                    multiply(xk, wk, block, tile, rows, total)
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for j in T.unroll(ROWS // LANES):
                            values[_vector(j * LANES)] = _squared_relu(
                                total[_vector(t * ROWS + j * LANES)]
                            )
                        store(values, k, tile * tokens + t, block)
                else:
                    gate_multiply(xr, wr, block - key_blocks, tile, rows, total)
                    for t in range(T.min(tokens, rows - tile * tokens)):
                        for j in T.unroll(ROWS // LANES):
                            r[
                                tile * tokens + t,
                                _vector((block - key_blocks) * ROWS + j * LANES),
                            ] = sigmoid(total[_vector(t * ROWS + j * LANES)], LANES)

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
    product = Product(x_type, w_type, sig.target)
    multiply, tokens = product.tile(), product.tokens
    x_shape, w_shape = x_type.shape[1:], w_type.shape

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        w: T.Buffer(w_shape, w_type.dtype),
        var_gate: T.handle,
        var_before: T.handle,
        var_after: T.handle,
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, *x_shape), x_type.dtype)
        gate = T.match_buffer(var_gate, (rows, width), "float32")
        before = T.match_buffer(var_before, (rows, width), "float32")
        after = T.match_buffer(var_after, (rows, width), "float32")
        for block in T.parallel(width // ROWS):
            total = T.alloc_buffer((tokens * ROWS,), "float32", scope="local")
            for tile in range((rows + tokens - 1) // tokens):
                multiply(x, w, block, tile, rows, total)
                for t in range(T.min(tokens, rows - tile * tokens)):
                    for j in T.unroll(ROWS // LANES):
                        if gated:
                            after[tile * tokens + t, _vector(block * ROWS + j * LANES)] = (
                                before[tile * tokens + t, _vector(block * ROWS + j * LANES)]
                                + gate[tile * tokens + t, _vector(block * ROWS + j * LANES)]
                                * total[_vector(t * ROWS + j * LANES)]
                            ) * T.Broadcast(T.float32(factor), LANES)
                        else:
                            after[tile * tokens + t, _vector(block * ROWS + j * LANES)] = (
                                before[tile * tokens + t, _vector(block * ROWS + j * LANES)]
                                + total[_vector(t * ROWS + j * LANES)]
                            )

    return kernel
