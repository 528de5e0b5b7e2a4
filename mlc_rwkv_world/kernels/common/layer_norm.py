"""Layer normalization over channels, in float32, with the variance of the centred values."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels import formulas
from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth

_LANES = 16

reference = formulas.layer_norm


def _square(value: Any) -> Any:
    return value * value


def layer_norm(sig: Signature, eps: float) -> tirx.PrimFunc:
    """(x, weight, bias) -> normalized, for a CPU."""
    width = sig.args[0].static(1)
    steps, tail = divmod(width, _LANES)
    body = steps * _LANES
    inverse = 1.0 / width
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
            part = T.alloc_buffer((_LANES,), "float32", scope=STACK)
            stat = T.alloc_buffer((2,), "float32", scope=STACK)
            for i in T.vectorized(_LANES):
                part[i] = T.float32(0)
            for step in range(steps):
                for i in T.vectorized(_LANES):
                    part[i] = part[i] + x[row, step * _LANES + i]
            stat[0] = T.float32(0)
            for i in range(tail):
                stat[0] = stat[0] + x[row, body + i]
            for i in range(_LANES):
                stat[0] = stat[0] + part[i]
            stat[0] = stat[0] * T.float32(inverse)
            for i in T.vectorized(_LANES):
                part[i] = T.float32(0)
            for step in range(steps):
                for i in T.vectorized(_LANES):
                    part[i] = part[i] + _square(x[row, step * _LANES + i] - stat[0])
            stat[1] = T.float32(0)
            for i in range(tail):
                stat[1] = stat[1] + _square(x[row, body + i] - stat[0])
            for i in range(_LANES):
                stat[1] = stat[1] + part[i]
            stat[1] = T.float32(1) / T.sqrt(stat[1] * T.float32(inverse) + T.float32(eps))
            for step in range(steps):
                for i in T.vectorized(_LANES):
                    out[row, step * _LANES + i] = (x[row, step * _LANES + i] - stat[0]) * stat[
                        1
                    ] * weight[step * _LANES + i] + bias[step * _LANES + i]
            for i in range(tail):
                out[row, body + i] = (x[row, body + i] - stat[0]) * stat[1] * weight[
                    body + i
                ] + bias[body + i]

    return kernel
