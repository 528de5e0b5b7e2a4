"""LayerNorm on a CPU, in one order of sums wherever it stands.

A row's values are summed by their number modulo 32, and these sums in turn.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth

# Lanes of a vector, and how many sums there are of a row.
LANES, SUMS = 8, 32

reference = formulas.layer_norm


def _vector(first: Any) -> Any:
    return T.Ramp(first, 1, LANES)


@T.inline
def moments(x: Any, row: Any, width: Any, eps: Any, stat: Any, part: Any) -> None:
    """Mean and inverse deviation of a row to stat[0] and stat[1]; `part` is room, [SUMS]."""
    for j in T.unroll(SUMS // LANES):
        part[_vector(j * LANES)] = T.Broadcast(T.float32(0), LANES)
    for step in range(width // SUMS):
        for j in T.unroll(SUMS // LANES):
            part[_vector(j * LANES)] = (
                part[_vector(j * LANES)] + x[row, _vector(step * SUMS + j * LANES)]
            )
    for i in range(width % SUMS):
        part[i] = part[i] + x[row, width // SUMS * SUMS + i]
    stat[0] = T.float32(0)
    for i in range(SUMS):
        stat[0] = stat[0] + part[i]
    stat[0] = stat[0] * T.float32(1 / width)
    for j in T.unroll(SUMS // LANES):
        part[_vector(j * LANES)] = T.Broadcast(T.float32(0), LANES)
    for step in range(width // SUMS):
        for j in T.unroll(SUMS // LANES):
            part[_vector(j * LANES)] = T.fma(
                x[row, _vector(step * SUMS + j * LANES)] - T.Broadcast(stat[0], LANES),
                x[row, _vector(step * SUMS + j * LANES)] - T.Broadcast(stat[0], LANES),
                part[_vector(j * LANES)],
            )
    for i in range(width % SUMS):
        part[i] = T.fma(
            x[row, width // SUMS * SUMS + i] - stat[0],
            x[row, width // SUMS * SUMS + i] - stat[0],
            part[i],
        )
    stat[1] = T.float32(0)
    for i in range(SUMS):
        stat[1] = stat[1] + part[i]
    stat[1] = T.float32(1) / T.sqrt(T.fma(stat[1], T.float32(1 / width), T.float32(eps)))


@T.inline
def normalized(x: Any, row: Any, base: Any, stat: Any, weight: Any, bias: Any, now: Any) -> None:
    """SUMS values of a row from `base` on, normalized, to the local `now`."""
    for j in T.unroll(SUMS // LANES):
        now[_vector(j * LANES)] = T.fma(
            (x[row, _vector(base + j * LANES)] - T.Broadcast(stat[0], LANES))
            * T.Broadcast(stat[1], LANES),
            weight[_vector(base + j * LANES)],
            bias[_vector(base + j * LANES)],
        )


def layer_norm(sig: Signature, eps: float) -> tirx.PrimFunc:
    """(x, weight, bias) -> normalized, for a CPU."""
    width = sig.args[0].static(1)
    body = width // SUMS * SUMS
    known = sig.args[0].shape[0]
    tasks = parallel_if_worth(known * width if isinstance(known, int) else None)

    @T.prim_func(s_tir=True)
    def kernel(
        var_x: T.handle,
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        var_out: T.handle,
    ) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, width), "float32")
        out = T.match_buffer(var_out, (rows, width), "float32")
        for row in tasks(rows):
            part = T.alloc_buffer((SUMS,), "float32", scope=STACK)
            stat = T.alloc_buffer((2,), "float32", scope=STACK)
            now = T.alloc_buffer((SUMS,), "float32", scope=STACK)
            moments(x, row, width, eps, stat, part)
            for group in range(body // SUMS):
                normalized(x, row, group * SUMS, stat, weight, bias, now)
                for j in T.unroll(SUMS // LANES):
                    out[row, _vector(group * SUMS + j * LANES)] = now[_vector(j * LANES)]
            for i in range(width - body):
                out[row, body + i] = T.fma(
                    (x[row, body + i] - stat[0]) * stat[1], weight[body + i], bias[body + i]
                )

    return kernel
