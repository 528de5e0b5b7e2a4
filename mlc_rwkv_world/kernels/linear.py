"""`x W^T` for a weight W [N, K] as it is stored, in one tensor or in words and scales.

The kernel is one that suits the target and the way of storing, or else the general one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from mlc_rwkv_world.kernels.common import linear as linear_any
from mlc_rwkv_world.kernels.cpu import linear as linear_cpu
from mlc_rwkv_world.kernels.cuda import matmul as matmul_cuda
from mlc_rwkv_world.kernels.cuda import matvec as matvec_cuda
from mlc_rwkv_world.kernels.signature import Signature

Array = NDArray[Any]


def reference(x: Array, weight: Array) -> Array:
    """x: [M, K]; weight: [N, K], dense. Computes in float64."""
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64).T)


def linear(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result."""
    if linear_cpu.suits(sig):
        return linear_cpu.linear_unpacked(sig)
    if matvec_cuda.suits(sig):
        return matvec_cuda.matvec(sig)
    if matmul_cuda.suits(sig):
        return matmul_cuda.matmul(sig)
    return linear_any.linear_any(sig)
