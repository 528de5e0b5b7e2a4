"""`x W^T` on a CPU, summed in float32.

One row (decode) runs along K with one row of W at a time. More rows first unpack a strip of W,
[K, 16], and then all read it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.dense import unpack
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth
from mlc_rwkv_world.storage import Stored

_LANES = 8
# Rows of W that one task computes; small enough to share work evenly, large enough to amortize it.
_ROWS = 16
# Rows of x that share each load of a strip: 4 x 16 float32 sums fill the vector registers.
_TOKENS = 4


def suits(sig: Signature) -> bool:
    """Whether the kernels take a weight that is stored in this way."""
    (stored,) = sig.stored
    # A group is unrolled, and a vector of its values is one or two words.
    return sig.on_cpu and (not stored.bits or (stored.bits in (4, 8) and stored.group == 32))


def linear_unpacked(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result."""
    (stored,) = sig.stored
    if sig.args[0].shape[0] == 1:
        return _matvec_grouped(sig, stored) if stored.bits else _matvec_plain(sig)
    return _matmul_grouped(sig, stored) if stored.bits else _matmul_plain(sig)


def _matvec_plain(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, w_type, y_type = sig.args[0].dtype, sig.args[1].dtype, sig.outs[0].dtype
    unrolled = 4
    tasks = parallel_if_worth(inner * outer)
    steps, tail = divmod(inner, unrolled * _LANES)
    body = inner - tail

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((1, inner), x_type),
        weight: T.Buffer((outer, inner), w_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        for block in tasks((outer + _ROWS - 1) // _ROWS):
            total = T.alloc_buffer((unrolled, _LANES), "float32", scope=STACK)
            result = T.alloc_buffer((1,), "float32", scope=STACK)
            for r in range(T.min(_ROWS, outer - block * _ROWS)):
                for j in T.unroll(unrolled):
                    for i in T.vectorized(_LANES):
                        total[j, i] = T.float32(0)
                for step in range(steps):
                    for j in T.unroll(unrolled):
                        for i in T.vectorized(_LANES):
                            total[j, i] = total[j, i] + T.cast(
                                x[0, (step * unrolled + j) * _LANES + i], "float32"
                            ) * T.cast(
                                weight[block * _ROWS + r, (step * unrolled + j) * _LANES + i],
                                "float32",
                            )
                result[0] = T.float32(0)
                for i in range(tail):
                    result[0] = result[0] + T.cast(x[0, body + i], "float32") * T.cast(
                        weight[block * _ROWS + r, body + i], "float32"
                    )
                for i in range(_LANES):
                    for j in T.unroll(unrolled):
                        result[0] = result[0] + total[j, i]
                y[0, block * _ROWS + r] = T.cast(result[0], y_type)

    return kernel


def _matvec_grouped(sig: Signature, stored: Stored) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, s_type, y_type = sig.args[0].dtype, sig.args[2].dtype, sig.outs[0].dtype
    per_word, group = stored.per_element, stored.group
    groups = inner // group
    tasks = parallel_if_worth(inner * outer)
    # _LANES values are one word of 4-bit values, or two of 8-bit ones.
    words = inner // per_word
    lane_words = _LANES // per_word

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((1, inner), x_type),
        q_weight: T.Buffer((outer, words), "uint32"),
        q_scale: T.Buffer((outer, groups), s_type),
        y: T.Buffer((1, outer), y_type),
    ) -> None:
        for block in tasks((outer + _ROWS - 1) // _ROWS):
            total = T.alloc_buffer((_LANES,), "float32", scope=STACK)
            part = T.alloc_buffer((_LANES,), "float32", scope=STACK)
            result = T.alloc_buffer((1,), "float32", scope=STACK)
            for r in range(T.min(_ROWS, outer - block * _ROWS)):
                for i in T.vectorized(_LANES):
                    total[i] = T.float32(0)
                for g in range(groups):
                    for i in T.vectorized(_LANES):
                        part[i] = T.float32(0)
                    for j in T.unroll(group // _LANES):
                        for i in T.vectorized(_LANES):
                            part[i] = part[i] + T.cast(
                                x[0, g * group + j * _LANES + i], "float32"
                            ) * unpack(
                                q_weight[
                                    block * _ROWS + r,
                                    (g * (group // _LANES) + j) * lane_words + i // per_word,
                                ],
                                i % per_word,
                                stored,
                            )
                    for i in T.vectorized(_LANES):
                        total[i] = total[i] + part[i] * T.cast(
                            q_scale[block * _ROWS + r, g], "float32"
                        )
                result[0] = T.float32(0)
                for i in range(_LANES):
                    result[0] = result[0] + total[i]
                y[0, block * _ROWS + r] = T.cast(result[0], y_type)

    return kernel


@T.inline
def _multiply(
    x: Any, strip: Any, y: Any, block: Any, rows: Any, inner: int, outer: int, dtype: str
) -> None:
    """Multiplies all rows of x by a strip; rows past the end repeat the last and are dropped."""
    total = T.alloc_buffer((_TOKENS, _ROWS), "float32", scope=STACK)
    for tile in range((rows + _TOKENS - 1) // _TOKENS):
        for t in T.unroll(_TOKENS):
            for r in T.vectorized(_ROWS):
                total[t, r] = T.float32(0)
        for k in range(inner):
            for t in T.unroll(_TOKENS):
                for r in T.vectorized(_ROWS):
                    total[t, r] = (
                        total[t, r]
                        + T.cast(x[T.min(tile * _TOKENS + t, rows - 1), k], "float32") * strip[k, r]
                    )
        for t in range(T.min(_TOKENS, rows - tile * _TOKENS)):
            for r in range(T.min(_ROWS, outer - block * _ROWS)):
                y[tile * _TOKENS + t, block * _ROWS + r] = T.cast(total[t, r], dtype)


def _matmul_plain(sig: Signature) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, w_type, y_type = sig.args[0].dtype, sig.args[1].dtype, sig.outs[0].dtype

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, weight: T.Buffer((outer, inner), w_type), var_y: T.handle) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), x_type)
        y = T.match_buffer(var_y, (rows, outer), y_type)
        for block in T.parallel((outer + _ROWS - 1) // _ROWS):
            strip = T.alloc_buffer((inner, _ROWS), "float32", scope="global")
            for r in range(_ROWS):
                for k in range(inner):
                    strip[k, r] = T.cast(weight[T.min(block * _ROWS + r, outer - 1), k], "float32")
            _multiply(x, strip, y, block, rows, inner, outer, y_type)

    return kernel


def _matmul_grouped(sig: Signature, stored: Stored) -> tirx.PrimFunc:
    inner, outer = sig.args[0].static(1), sig.outs[0].static(1)
    x_type, s_type, y_type = sig.args[0].dtype, sig.args[2].dtype, sig.outs[0].dtype
    per_word, group = stored.per_element, stored.group
    words, groups = inner // per_word, inner // group

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        q_weight: T.Buffer((outer, words), "uint32"),
        q_scale: T.Buffer((outer, groups), s_type),
        var_y: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), x_type)
        y = T.match_buffer(var_y, (rows, outer), y_type)
        for block in T.parallel((outer + _ROWS - 1) // _ROWS):
            strip = T.alloc_buffer((inner, _ROWS), "float32", scope="global")
            for r in range(_ROWS):
                for w in range(words):
                    for i in T.unroll(per_word):
                        strip[w * per_word + i, r] = unpack(
                            q_weight[T.min(block * _ROWS + r, outer - 1), w], i, stored
                        ) * T.cast(
                            q_scale[T.min(block * _ROWS + r, outer - 1), w * per_word // group],
                            "float32",
                        )
            _multiply(x, strip, y, block, rows, inner, outer, y_type)

    return kernel
