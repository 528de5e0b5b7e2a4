"""The inputs of RWKV-6's products on a CPU: blends by what a small product makes of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.checkpoint.rwkv6 import MIXES
from mlc_rwkv_world.kernels.cpu.chosen import chosen_data
from mlc_rwkv_world.kernels.cpu.exp import tanh
from mlc_rwkv_world.kernels.cpu.llvm_functions import CHOOSE_IR, IMPORT
from mlc_rwkv_world.kernels.cpu.mix import LANES, storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.cpu.products import End, products
from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType
from mlc_rwkv_world.storage.stored import ROWS

_COUNT = len(MIXES)


def hidden(sig: Signature) -> tirx.PrimFunc:
    """(x, W) -> tanh(W x) in five pieces, inputs of products; x and W are given five times."""
    ends = [End(tanh, floats=False, piece=(n, _COUNT)) for n in range(_COUNT)]
    return products(sig, ends)


def mixes(sig: Signature) -> tirx.PrimFunc:
    """(x, previous [T, D], five inputs, five weights, five shares [D]) -> five inputs of products.

    Each is x + (previous - x) * (share + W h), x being normalized.
    """
    width = sig.args[0].static(1)
    hidden, weights = sig.args[2 : 2 + _COUNT], sig.args[2 + _COUNT : 2 + 2 * _COUNT]
    (h_type,), (w_type,), (out_type,) = (set(types) for types in (hidden, weights, sig.outs))
    # One block at a time, whose blends are written before the next.
    one = TensorType((1, *w_type.shape[1:]), w_type.dtype)
    product = Product(h_type, one, sig.stored[0], sig)
    multiply, tokens, store = product.tile(), product.tokens, storing(sig.inputs)
    h_shape, out_shape = h_type.shape[1:], out_type.shape[1:]
    # The body of a blend is long, so that it is there once.
    ends = range(1, _COUNT + 1)

    def data(number: Any, tensors: Sequence[Any]) -> Any:
        return chosen_data(number, ends, tensors)

    @T.inline
    def blend(given: Any, of: Any, block: Any, tile: Any, rows: Any, total: Any) -> None:
        x, previous = T.meta_var(given)
        h, w, share, out = T.meta_var(of)
        values = T.alloc_buffer((ROWS,), "float32", scope=STACK)
        multiply(h, w, block, tile, rows, total)
        for t in range(T.min(tokens, rows - tile * tokens)):
            row = T.meta_var(tile * tokens + t)
            for j in T.unroll(ROWS // LANES):
                at = T.meta_var(T.Ramp(block * ROWS + j * LANES, 1, LANES))
                values[T.Ramp(j * LANES, 1, LANES)] = T.fma(
                    previous[row, at] - x[row, at],
                    share[at] + total[T.Ramp(t * ROWS + j * LANES, 1, LANES)],
                    x[row, at],
                )
            store(values, out, row, block)

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        var_previous: T.handle,
        var_h_w: T.handle,
        var_h_k: T.handle,
        var_h_v: T.handle,
        var_h_r: T.handle,
        var_h_g: T.handle,
        w_w: T.Buffer(w_type.shape, w_type.dtype),
        w_k: T.Buffer(w_type.shape, w_type.dtype),
        w_v: T.Buffer(w_type.shape, w_type.dtype),
        w_r: T.Buffer(w_type.shape, w_type.dtype),
        w_g: T.Buffer(w_type.shape, w_type.dtype),
        share_w: T.Buffer((width,), "float32"),
        share_k: T.Buffer((width,), "float32"),
        share_v: T.Buffer((width,), "float32"),
        share_r: T.Buffer((width,), "float32"),
        share_g: T.Buffer((width,), "float32"),
        var_w: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_r: T.handle,
        var_g: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, width), "float32")
        previous = T.match_buffer(var_previous, (rows, width), "float32")
        h_w = T.match_buffer(var_h_w, (rows, *h_shape), h_type.dtype)
        h_k = T.match_buffer(var_h_k, (rows, *h_shape), h_type.dtype)
        h_v = T.match_buffer(var_h_v, (rows, *h_shape), h_type.dtype)
        h_r = T.match_buffer(var_h_r, (rows, *h_shape), h_type.dtype)
        h_g = T.match_buffer(var_h_g, (rows, *h_shape), h_type.dtype)
        out_w = T.match_buffer(var_w, (rows, *out_shape), out_type.dtype)
        out_k = T.match_buffer(var_k, (rows, *out_shape), out_type.dtype)
        out_v = T.match_buffer(var_v, (rows, *out_shape), out_type.dtype)
        out_r = T.match_buffer(var_r, (rows, *out_shape), out_type.dtype)
        out_g = T.match_buffer(var_g, (rows, *out_shape), out_type.dtype)
        for block in T.parallel(width // ROWS):
            total = T.alloc_buffer((tokens * ROWS,), "float32", scope=STACK)
            for tile in range((rows + tokens - 1) // tokens):
                for n in range(_COUNT):
                    T.attr(T.int32(0), IMPORT, CHOOSE_IR)
                    h_data: T.let[T.handle(h_type.dtype)] = data(n, (h_w, h_k, h_v, h_r, h_g))
                    w_data: T.let[T.handle(w_type.dtype)] = data(n, (w_w, w_k, w_v, w_r, w_g))
                    share_data: T.let[T.handle("float32")] = data(
                        n, (share_w, share_k, share_v, share_r, share_g)
                    )
                    out_data: T.let[T.handle(out_type.dtype)] = data(
                        n, (out_w, out_k, out_v, out_r, out_g)
                    )
                    h = T.decl_buffer((rows, *h_shape), h_type.dtype, data=h_data)
                    w = T.decl_buffer(w_type.shape, w_type.dtype, data=w_data)
                    share = T.decl_buffer((width,), "float32", data=share_data)
                    out = T.decl_buffer((rows, *out_shape), out_type.dtype, data=out_data)
                    blend((x, previous), (h, w, share, out), block, tile, rows, total)

    return kernel
