"""`x W^T` for a weight W [N, K] as it is stored: plain, or group-quantized.

A weight is one argument (float32 or float16) or two (words and scales, see `packing`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from mlc_rwkv_world.kernels import linear_cpu, linear_gpu
from mlc_rwkv_world.kernels.signature import Signature

Array = NDArray[Any]


def reference(x: Array, weight: Array) -> Array:
    """x: [M, K]; weight: [N, K], dense. Computes in float64."""
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64).T)


def linear(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result."""
    return linear_cpu.linear(sig) if sig.on_cpu else linear_gpu.linear(sig)
