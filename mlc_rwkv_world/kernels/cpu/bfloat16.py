"""float32 as bfloat16, its upper half, rounded to the nearest and to even; kept as uint16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.signature import Signature, parallel_if_worth

BITS = "uint16"
# Values that are stored at a time.
_GROUP = 32
_LANES = 8
# Of what is not a number, whose upper half alone could be infinity's.
_NAN = 0x7FC0
_INFINITY = 0x7F800000


def reference(x: NDArray[Any]) -> NDArray[np.uint16]:
    """x: float16 or float32."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(np.where(np.isnan(x), np.uint16(_NAN), nearest.astype(np.uint16)))


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values that bits stand for."""
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def rounded(value: Any, lanes: int) -> Any:
    """A float32 x lanes expression as bits, uint16 x lanes."""

    def all_lanes(constant: Any) -> Any:
        return T.Broadcast(constant, lanes) if lanes > 1 else constant

    bits = T.reinterpret("uint32" if lanes == 1 else f"uint32x{lanes}", value)
    odd = bits >> all_lanes(T.uint32(16)) & all_lanes(T.uint32(1))
    nearest = (bits + all_lanes(T.uint32(0x7FFF)) + odd) >> all_lanes(T.uint32(16))
    # Comparing the value with itself would be simplified away.
    number = T.Select(
        bits & all_lanes(T.uint32(0x7FFFFFFF)) <= all_lanes(T.uint32(_INFINITY)),
        nearest,
        all_lanes(T.uint32(_NAN)),
    )
    return T.Cast(BITS if lanes == 1 else f"{BITS}x{lanes}", number)


@T.inline
def store_group(values: Any, out: Any, row: Any, group: Any) -> None:
    """Writes 32 float32 values, a local buffer [32], to group `group` of out's row."""
    for j in T.unroll(_GROUP // _LANES):
        out[row, T.Ramp(group * _GROUP + j * _LANES, 1, _LANES)] = rounded(
            values[T.Ramp(j * _LANES, 1, _LANES)], _LANES
        )


def round_inputs(sig: Signature) -> tirx.PrimFunc:
    """(x float32 [T, K]) -> bits [T, K]."""
    inner = sig.args[0].static(1)
    known = sig.args[0].shape[0]
    tasks = parallel_if_worth(known * inner if isinstance(known, int) else None)

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, var_out: T.handle) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), "float32")
        out = T.match_buffer(var_out, (rows, inner), BITS)
        for row in tasks(rows):
            for k in T.serial(inner):
                out[row, k] = rounded(x[row, k], 1)

    return kernel
