"""`x W^T` for a weight W [N, K] as it is stored: plain, or group-quantized.

A weight is one argument (float32 or float16) or two (words and scales, see `packing`). On a CPU
products are float32; one row (decode) runs along K with a row of W at a time, more rows first
unpack a strip of W and then share it. On a GPU the kernel is left for dlight to schedule, with
the unpacking inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.packing import GROUP_SIZE, unpack, values_per_word
from mlc_rwkv_world.kernels.signature import Signature, TensorType

Array = NDArray[Any]

LANES = 8
# Rows of W that one task computes; small enough to share work evenly, large enough to amortize it.
ROWS = 16
# Tokens that share each load of an unpacked strip: 4 x 16 float32 accumulators fill the registers.
TOKENS = 4


def reference(x: Array, weight: Array) -> Array:
    """x: [M, K]; weight: [N, K], dense. Computes in float64."""
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64).T)


def linear(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result."""
    if not sig.on_cpu:
        return _tensor_expression(sig)
    rows = sig.args[0].shape[0]
    if isinstance(rows, int) and rows == 1:
        return _matvec_plain(sig) if len(sig.args) == 2 else _matvec_grouped(sig)
    return _matmul_plain(sig) if len(sig.args) == 2 else _matmul_grouped(sig)


def _bits(weight: TensorType, inner: int) -> int:
    return 32 * weight.static(1) // inner


def _matvec_plain(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, w_type, y_type = sig.args[0].dtype, sig.args[1].dtype, sig.outs[0].dtype
    unrolled = 4
    steps, tail = divmod(inner, unrolled * LANES)
    body = inner - tail

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((1, inner), x_type),
        weight: T.Buffer((outer, inner), w_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        for block in T.parallel((outer + ROWS - 1) // ROWS):
            total = T.alloc_buffer((unrolled, LANES), "float32", scope="local")
            result = T.alloc_buffer((1,), "float32", scope="local")
            for r in range(T.min(ROWS, outer - block * ROWS)):
                for j in T.unroll(unrolled):
                    for i in T.vectorized(LANES):
                        total[j, i] = T.float32(0)
                for step in range(steps):
                    for j in T.unroll(unrolled):
                        for i in T.vectorized(LANES):
                            total[j, i] = total[j, i] + T.cast(
                                x[0, (step * unrolled + j) * LANES + i], "float32"
                            ) * T.cast(
                                weight[block * ROWS + r, (step * unrolled + j) * LANES + i],
                                "float32",
                            )
                result[0] = T.float32(0)
                for i in range(tail):
                    result[0] = result[0] + T.cast(x[0, body + i], "float32") * T.cast(
                        weight[block * ROWS + r, body + i], "float32"
                    )
                for i in range(LANES):
                    for j in T.unroll(unrolled):
                        result[0] = result[0] + total[j, i]
                y[0, block * ROWS + r] = T.cast(result[0], y_type)

    return kernel


def _matvec_grouped(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, s_type, y_type = sig.args[0].dtype, sig.args[2].dtype, sig.outs[0].dtype
    bits = _bits(sig.args[1], inner)
    per_word = values_per_word(bits)
    groups = inner // GROUP_SIZE
    # LANES values are one word of 4-bit values, or two of 8-bit ones.
    words = inner // per_word
    lane_words = LANES // per_word

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((1, inner), x_type),
        q_weight: T.Buffer((outer, words), "uint32"),
        q_scale: T.Buffer((outer, groups), s_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        for block in T.parallel((outer + ROWS - 1) // ROWS):
            total = T.alloc_buffer((LANES,), "float32", scope="local")
            part = T.alloc_buffer((LANES,), "float32", scope="local")
            result = T.alloc_buffer((1,), "float32", scope="local")
            for r in range(T.min(ROWS, outer - block * ROWS)):
                for i in T.vectorized(LANES):
                    total[i] = T.float32(0)
                for g in range(groups):
                    for i in T.vectorized(LANES):
                        part[i] = T.float32(0)
                    for j in T.unroll(GROUP_SIZE // LANES):
                        for i in T.vectorized(LANES):
                            part[i] = part[i] + T.cast(
                                x[0, g * GROUP_SIZE + j * LANES + i], "float32"
                            ) * unpack(
                                q_weight[
                                    block * ROWS + r,
                                    (g * (GROUP_SIZE // LANES) + j) * lane_words + i // per_word,
                                ],
                                i % per_word,
                                bits,
                            )
                    for i in T.vectorized(LANES):
                        total[i] = total[i] + part[i] * T.cast(
                            q_scale[block * ROWS + r, g], "float32"
                        )
                result[0] = T.float32(0)
                for i in range(LANES):
                    result[0] = result[0] + total[i]
                y[0, block * ROWS + r] = T.cast(result[0], y_type)

    return kernel


def _matmul_plain(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, w_type, y_type = sig.args[0].dtype, sig.args[1].dtype, sig.outs[0].dtype

    def strip_value(weight: Any, row: Any, k: Any) -> Any:
        return weight[T.min(row, outer - 1), k].astype("float32")

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, weight: T.Buffer((outer, inner), w_type), var_y: T.handle) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        seq_len = T.int64()
        x = T.match_buffer(var_x, (seq_len, inner), x_type)
        y = T.match_buffer(var_y, (seq_len, outer), y_type)
        for block in T.parallel((outer + ROWS - 1) // ROWS):
            strip = T.alloc_buffer((inner, ROWS), "float32", scope="global")
            total = T.alloc_buffer((TOKENS, ROWS), "float32", scope="local")
            for r in range(ROWS):
                for k in range(inner):
                    strip[k, r] = strip_value(weight, block * ROWS + r, k)
            for tile in range((seq_len + TOKENS - 1) // TOKENS):
                for t in T.unroll(TOKENS):
                    for r in T.vectorized(ROWS):
                        total[t, r] = T.float32(0)
                for k in range(inner):
                    for t in T.unroll(TOKENS):
                        for r in T.vectorized(ROWS):
                            total[t, r] = (
                                total[t, r]
                                + T.cast(x[T.min(tile * TOKENS + t, seq_len - 1), k], "float32")
                                * strip[k, r]
                            )
                for t in range(T.min(TOKENS, seq_len - tile * TOKENS)):
                    for r in range(T.min(ROWS, outer - block * ROWS)):
                        y[tile * TOKENS + t, block * ROWS + r] = T.cast(total[t, r], y_type)

    return kernel


def _matmul_grouped(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, s_type, y_type = sig.args[0].dtype, sig.args[2].dtype, sig.outs[0].dtype
    bits = _bits(sig.args[1], inner)
    per_word = values_per_word(bits)
    words, groups = inner // per_word, inner // GROUP_SIZE

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        q_weight: T.Buffer((outer, words), "uint32"),
        q_scale: T.Buffer((outer, groups), s_type),
        var_y: T.handle,
    ) -> None:
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": 1})
        seq_len = T.int64()
        x = T.match_buffer(var_x, (seq_len, inner), x_type)
        y = T.match_buffer(var_y, (seq_len, outer), y_type)
        for block in T.parallel((outer + ROWS - 1) // ROWS):
            strip = T.alloc_buffer((inner, ROWS), "float32", scope="global")
            total = T.alloc_buffer((TOKENS, ROWS), "float32", scope="local")
            for r in range(ROWS):
                for w in range(words):
                    for i in T.unroll(per_word):
                        strip[w * per_word + i, r] = unpack(
                            q_weight[T.min(block * ROWS + r, outer - 1), w], i, bits
                        ) * T.cast(
                            q_scale[T.min(block * ROWS + r, outer - 1), w * per_word // GROUP_SIZE],
                            "float32",
                        )
            for tile in range((seq_len + TOKENS - 1) // TOKENS):
                for t in T.unroll(TOKENS):
                    for r in T.vectorized(ROWS):
                        total[t, r] = T.float32(0)
                for k in range(inner):
                    for t in T.unroll(TOKENS):
                        for r in T.vectorized(ROWS):
                            total[t, r] = (
                                total[t, r]
                                + T.cast(x[T.min(tile * TOKENS + t, seq_len - 1), k], "float32")
                                * strip[k, r]
                            )
                for t in range(T.min(TOKENS, seq_len - tile * TOKENS)):
                    for r in range(T.min(ROWS, outer - block * ROWS)):
                        y[tile * TOKENS + t, block * ROWS + r] = T.cast(total[t, r], y_type)

    return kernel


def _tensor_expression(sig: Signature) -> tirx.PrimFunc:
    """The product for dlight: float32 sums, the unpacking inlined where it is read."""
    rows, inner = sig.args[0].extents("seq_len")
    _, outer = sig.outs[0].extents("seq_len")
    x = te.placeholder((rows, inner), sig.args[0].dtype, "x")
    stored = [te.placeholder(ty.extents(), ty.dtype, "weight") for ty in sig.args[1:]]
    weight = te.compute((outer, inner), _dense(sig, stored), "dense")
    k = te.reduce_axis((0, inner), "k")
    out_type = sig.outs[0].dtype
    product = te.compute(
        (rows, outer),
        lambda m, n: te.sum(x[m, k].astype(out_type) * weight[n, k].astype(out_type), axis=k),
        "matmul",
    )
    return te.create_prim_func([x, *stored, product]).with_attr("op_pattern", 4)


def _dense(sig: Signature, stored: Sequence[te.Tensor]) -> Callable[..., Any]:
    """The value at (n, k) of a stored weight, in the type of x."""
    dtype = sig.args[0].dtype
    if len(stored) == 1:
        return lambda n, k: stored[0][n, k].astype(dtype)
    q_weight, q_scale = stored
    bits = _bits(sig.args[1], sig.args[0].static(1))
    per_word = values_per_word(bits)

    def dequantize(n: Any, k: Any) -> Any:
        value = unpack(q_weight[n, k // per_word], (k % per_word).astype("int32"), bits)
        return value.astype(dtype) * q_scale[n, k // GROUP_SIZE].astype(dtype)

    return dequantize
