"""e^x, the logistic function and tanh over vectors of float32, as polynomials.

e^x = 2^n e^f with n = round(x log2 e) and f in [-ln 2 / 2, ln 2 / 2]; e^f by its series to the
sixth power, which leaves 1.2e-7, as much as float32 rounds. Below -87 the result stays e^-87, about
1.6e-38, and above 88 e^88: neither 0 nor infinite.

tanh x = x + x^3 P(x^2) below 0.625, P of the fourth power, which leaves 5e-9 (fitted by weighted
least squares); 1 - 2 / (e^2x + 1) above. Together with what float32 rounds, 2e-7 of the value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.signature import Signature

_LOW, _HIGH = -87.0, 88.0
_LOG2_E = 1.4426950408889634
# ln 2 in two parts, of which the first has few enough bits that n times it is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_MAGIC = 12582912.0
_SERIES = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_SMALL = 0.625
_TANH = (-0.0057048723, 0.020638974, -0.053739678, 0.13331442, -0.3333328)


def reference(x: NDArray[Any]) -> NDArray[Any]:
    """In x's dtype."""
    return np.asarray(np.exp(np.clip(x, _LOW, _HIGH)))


def exp(x: Any, count: int) -> Any:
    """e^x for `count` lanes; what is not a number stays so."""

    def constant(value: float) -> Any:
        return T.Broadcast(T.float32(value), count)

    kept = T.max(constant(_LOW), T.min(constant(_HIGH), x))
    # The rounded number as an integer: adding and subtracting would be simplified away.
    n = T.reinterpret(
        f"int32x{count}", T.fma(kept, constant(_LOG2_E), constant(_MAGIC))
    ) - T.Broadcast(T.reinterpret("int32", T.float32(_MAGIC)), count)
    whole = T.Cast(f"float32x{count}", n)
    f = T.fma(whole, constant(-_LN2_LOW), T.fma(whole, constant(-_LN2_HIGH), kept))
    value = constant(_SERIES[0])
    for coefficient in _SERIES[1:]:
        value = T.fma(value, f, constant(coefficient))
    power = (n + T.Broadcast(T.int32(127), count)) << T.Broadcast(T.int32(23), count)
    # A minimum forgets what is not a number; a product with zero keeps it.
    return T.fma(value, T.reinterpret(f"float32x{count}", power), x * constant(0.0))


def sigmoid(x: Any, count: int) -> Any:
    """1 / (1 + e^-x) for `count` lanes."""
    one = T.Broadcast(T.float32(1), count)
    return one / (one + exp(T.Broadcast(T.float32(0), count) - x, count))


def silu(x: Any, count: int) -> Any:
    """x / (1 + e^-x) for `count` lanes."""
    return x * sigmoid(x, count)


def tanh(x: Any, count: int) -> Any:
    """The hyperbolic tangent for `count` lanes; what is not a number stays so."""

    def constant(value: float) -> Any:
        return T.Broadcast(T.float32(value), count)

    size, square = T.abs(x), x * x
    power = constant(_TANH[0])
    for coefficient in _TANH[1:]:
        power = T.fma(power, square, constant(coefficient))
    large = constant(1.0) - constant(2.0) / (exp(size + size, count) + constant(1.0))
    signed = T.Select(x < constant(0.0), constant(0.0) - large, large)
    return T.Select(size < constant(_SMALL), T.fma(x * square, power, x), signed)


def exp_kernel(sig: Signature) -> tirx.PrimFunc:
    """(x [N]) -> e^x, N a multiple of 16."""
    width = lanes(sig.target)

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, var_y: T.handle) -> None:
        count = T.int64()
        x = T.match_buffer(var_x, (count,), "float32")
        y = T.match_buffer(var_y, (count,), "float32")
        for i in range(count // width):
            y[T.Ramp(i * width, 1, width)] = exp(x[T.Ramp(i * width, 1, width)], width)

    return kernel
