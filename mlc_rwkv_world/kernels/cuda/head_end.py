"""What follows a recurrence of heads' matrices on CUDA: norm of each head, bonus and gate.

Every warp of a block sums over the whole head, so that none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.cuda.dot import WARP, sum_over_lanes
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

Array = NDArray[Any]
# The arguments that some versions have, in the order in which kernels take them: what makes the
# bonus, [T, D] and [H, N], and the gate [T, D]. `Ending.absent` says which one lacks.
BONUS, GATE = ("r", "k", "v", "r_k"), "gate"


def reference(
    y: Array,
    bonus: tuple[Array, Array, Array, Array] | None,
    weight: Array,
    bias: Array,
    gate: Array | None,
    size: int,
    eps: float,
    *,
    silu: bool = False,
) -> Array:
    """y and gate: [T, D]; bonus: r, k, v [T, D], r_k [H, N]; weight, bias: [D]. In y's dtype."""
    out = formulas.head_norm(y, weight, bias, size, eps)
    if bonus is not None:
        r, k, v, r_k = bonus
        agreement = (r * k * r_k.reshape(-1)).reshape(len(y), -1, size).sum(-1, keepdims=True)
        out = out + (agreement * v.reshape(len(y), -1, size)).reshape(y.shape)
    if gate is not None:
        out = out * (gate * formulas.sigmoid(gate) if silu else gate)
    return np.asarray(out)


@dataclass(frozen=True)
class Ending:
    """The normalization of heads of `size` with `eps`, and what follows it.

    With `bonus`, v is added as often as r agrees with k. The result is multiplied by the gate where
    there is one, which is under a silu if `silu`.
    """

    size: int
    eps: float
    bonus: bool
    gate: bool
    silu: bool

    @property
    def absent(self) -> list[str]:
        """The arguments that it does not take."""
        return [*(() if self.bonus else BONUS), *(() if self.gate else (GATE,))]

    def body(self) -> Callable[..., None]:
        """`body(read, row, head, base, thread, (r, k, v, r_k), (weight, bias), gate, out)`.

        Inlined. `read(c)` is channel c of the head in the row of y; `base` the head's first one. Of
        a block's threads as many write as the head has channels.
        """
        size, eps, bonus, gated, silu = self.size, self.eps, self.bonus, self.gate, self.silu
        inverse, turns = 1.0 / size, -(-size // WARP)

        @T.inline
        def sum_over_head(total, at, lane, value):  # type: ignore[no-untyped-def]
            total[at] = T.float32(0)
            for i in T.unroll(turns):
                if size % WARP == 0 or i * WARP + lane < size:
                    total[at] = total[at] + value(i * WARP + lane)
            sum_over_lanes(total, at, WARP)

        @T.inline
        def body(
            read: Any,
            row: Any,
            head: Any,
            base: Any,
            thread: Any,
            given: Any,
            norm: Any,
            gate: Any,
            out: Any,
        ) -> None:
            # Mean, 1 / deviation, and how much r agrees with k.
            stat = T.alloc_buffer((3,), "float32", scope="local")
            result = T.alloc_buffer((1,), "float32", scope="local")
            r, k, v, r_k = T.meta_var(given)
            weight, bias = T.meta_var(norm)
            lane = T.meta_var(thread % WARP)
            sum_over_head(stat, 0, lane, read)
            stat[0] = stat[0] * T.float32(inverse)
            sum_over_head(stat, 1, lane, partial(_square, read, stat))
            stat[1] = T.float32(1) / T.sqrt(stat[1] * T.float32(inverse) + T.float32(eps))
            if bonus:
                sum_over_head(stat, 2, lane, partial(_agreement, r, k, r_k, row, head, base))
            if thread < size:
                c = T.meta_var(base + T.cast(thread, "int64"))
                result[0] = (read(thread) - stat[0]) * stat[1] * weight[c] + bias[c]
                if bonus:
                    result[0] = result[0] + stat[2] * v[row, c]
                if gated:
                    result[0] = result[0] * gate[row, c]
                if gated and silu:
                    result[0] = result[0] * T.sigmoid(gate[row, c])
                out[row, c] = T.cast(result[0], out.dtype)

        chosen: Callable[..., None] = body
        return chosen


def _square(read: Any, stat: Any, c: Any) -> Any:
    return (read(c) - stat[0]) * (read(c) - stat[0])


def _agreement(r: Any, k: Any, r_k: Any, row: Any, head: Any, base: Any, c: Any) -> Any:
    at = base + T.cast(c, "int64")
    return r[row, at] * k[row, at] * r_k[head, c]


def head_end(
    sig: Signature, size: int, eps: float, *, bonus: bool, gate: bool, silu: bool
) -> tirx.PrimFunc:
    """(y [T, D], r, k, v, r_k, weight, bias, gate) -> [T, D], see `Ending`; float32 but for that.

    For a prompt, whose recurrence is a launch of its own: a block has a head of a token.
    """
    ending = Ending(size, eps, bonus, gate, silu)
    width, y_type = sig.args[0].static(1), sig.outs[0].dtype
    heads, threads = width // size, -(-size // WARP) * WARP
    body = ending.body()

    @T.prim_func(s_tir=True)
    def kernel(
        var_y: T.handle,
        var_r: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        r_k: T.Buffer((heads, size), "float32"),
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        var_gate: T.handle,
        var_out: T.handle,
    ) -> None:
        rows = T.int64()
        y = T.match_buffer(var_y, (rows, width), "float32")
        r = T.match_buffer(var_r, (rows, width), "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        gate = T.match_buffer(var_gate, (rows, width), "float32")
        out = T.match_buffer(var_out, (rows, width), y_type)
        for block in T.thread_binding(rows * T.int64(heads), thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                row = T.meta_var(T.truncdiv(block, T.int64(heads)))
                head = T.meta_var(T.truncmod(block, T.int64(heads)))
                base = T.meta_var(head * T.int64(size))
                body(
                    partial(_channel, y, row, base),
                    row,
                    head,
                    base,
                    thread,
                    (r, k, v, r_k),
                    (weight, bias),
                    gate,
                    out,
                )

    return without(kernel, *ending.absent)


def _channel(y: Any, row: Any, base: Any, c: Any) -> Any:
    return y[row, base + T.cast(c, "int64")]
