"""Inputs of products as signed bytes: each group of 32 values of a row with a scale of its own.

A row of K values becomes K / 32 records of 10 words: 32 bytes, in order, then the scale (float32),
then the sum of the bytes (int32), which products with an offset need. A byte is
round(x / scale), the scale max|x| / 127. A group with a value that is not finite has the scale NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.signature import STACK, Signature, TensorType, parallel_if_worth

# Values that share a scale, as those of the weights that they are multiplied with.
GROUP = 32
RECORD = 10
SCALE, SUM = 8, 9
_LARGEST = 127.0
# Added to a float32 below 2^22, it leaves the nearest integer in the low bits.
_MAGIC = 12582912.0
_LANES = 8


def quantized_type(rows: Any, inner: int) -> TensorType:
    """The type of the records of a [rows, inner] tensor."""
    return TensorType((rows, inner // GROUP, RECORD), "uint32")


def reference(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """x: [T, K]."""
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    inverse = np.divide(
        np.float32(_LARGEST), largest, out=np.zeros_like(largest), where=largest > 0
    )
    values = np.rint(groups * inverse[:, :, None]).astype(np.int8)
    out = np.empty((*largest.shape, RECORD), np.uint32)
    out[:, :, :SCALE] = np.ascontiguousarray(values).view(np.uint32)
    out[:, :, SCALE] = (largest * np.float32(1 / _LARGEST)).view(np.uint32)
    out[:, :, SUM] = values.sum(axis=2, dtype=np.int32).view(np.uint32)
    return out


def dequantized(records: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The values [T, K] that records stand for."""
    values = np.ascontiguousarray(records[:, :, :SCALE]).view(np.int8).astype(np.float32)
    scale = np.ascontiguousarray(records[:, :, SCALE]).view(np.float32)
    return np.asarray((values * scale[:, :, None]).reshape(len(records), -1))


def _vector(first: Any) -> Any:
    return T.Ramp(first, 1, _LANES)


@T.inline
def store_group(values: Any, out: Any, row: Any, group: Any) -> None:
    """Writes the record of 32 float32 values, a local buffer [32], to out[row, group]."""
    peak = T.alloc_buffer((2 * _LANES,), "float32", scope=STACK)
    byte = T.alloc_buffer((GROUP,), "int32", scope=STACK)
    total = T.alloc_buffer((_LANES,), "int32", scope=STACK)
    peak[_vector(0)] = T.Broadcast(T.float32(0), _LANES)
    peak[_vector(_LANES)] = T.Broadcast(T.float32(0), _LANES)
    for j in T.unroll(GROUP // _LANES):
        peak[_vector(0)] = T.max(peak[_vector(0)], values[_vector(j * _LANES)])
        peak[_vector(_LANES)] = T.min(peak[_vector(_LANES)], values[_vector(j * _LANES)])
    peak[_vector(0)] = T.max(peak[_vector(0)], T.float32(0) - peak[_vector(_LANES)])
    # Comparing loses what is not a number; a product with zero keeps it.
    peak[_vector(_LANES)] = T.Broadcast(T.float32(0), _LANES)
    for j in T.unroll(GROUP // _LANES):
        peak[_vector(_LANES)] = T.fma(
            values[_vector(j * _LANES)], T.Broadcast(T.float32(0), _LANES), peak[_vector(_LANES)]
        )
    for i in T.unroll(_LANES - 1):
        peak[0] = T.max(peak[0], peak[i + 1])
    for i in T.unroll(_LANES - 1):
        peak[_LANES] = peak[_LANES] + peak[_LANES + 1 + i]
    peak[1] = T.Select(peak[0] > T.float32(0), T.float32(_LARGEST) / peak[0], T.float32(0))
    total[_vector(0)] = T.Broadcast(T.int32(0), _LANES)
    for j in T.unroll(GROUP // _LANES):
        byte[_vector(j * _LANES)] = T.reinterpret(
            "int32x8",
            T.fma(
                values[_vector(j * _LANES)],
                T.Broadcast(peak[1], _LANES),
                T.Broadcast(T.float32(_MAGIC), _LANES),
            ),
        ) - T.Broadcast(T.reinterpret("int32", T.float32(_MAGIC)), _LANES)
        total[_vector(0)] = total[_vector(0)] + byte[_vector(j * _LANES)]
        out[row, group, T.Ramp(2 * j, 1, 2)] = T.reinterpret(
            "uint32x2", T.Cast("int8x8", byte[_vector(j * _LANES)])
        )
    for i in T.unroll(_LANES - 1):
        total[0] = total[0] + total[i + 1]
    out[row, group, SCALE] = T.reinterpret(
        "uint32", T.fma(peak[0], T.float32(1 / _LARGEST), peak[_LANES])
    )
    out[row, group, SUM] = T.reinterpret("uint32", total[0])


def quantize(sig: Signature) -> tirx.PrimFunc:
    """(x [T, K]) -> records."""
    inner = sig.args[0].static(1)
    groups = inner // GROUP
    known = sig.args[0].shape[0]
    tasks = parallel_if_worth(known * inner if isinstance(known, int) else None)

    @T.prim_func(s_tir=True)
    def kernel(var_x: T.handle, var_out: T.handle) -> None:
        rows = T.int64()
        x = T.match_buffer(var_x, (rows, inner), "float32")
        out = T.match_buffer(var_out, (rows, groups, RECORD), "uint32")
        for row in tasks(rows):
            for group in range(groups):
                values = T.alloc_buffer((GROUP,), "float32", scope=STACK)
                for j in T.unroll(GROUP // _LANES):
                    values[_vector(j * _LANES)] = x[row, T.Ramp(group * 32 + j * 8, 1, _LANES)]
                store_group(values, out, row, group)

    return kernel
