"""Rows of an embedding by token id, as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from mlc_rwkv_world.kernels.common.dense import value
from mlc_rwkv_world.kernels.signature import Signature


def reference(weight: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.float32]:
    """weight: [V, D]; ids: [T]."""
    return np.asarray(weight[ids], dtype=np.float32)


def embedding(sig: Signature) -> tirx.PrimFunc:
    """(weight..., ids) -> [T, D]; the weight as it is stored."""
    (stored,) = sig.stored
    weight = [te.placeholder(ty.extents(), ty.dtype, "weight") for ty in sig.args[:-1]]
    ids = te.placeholder(sig.args[-1].extents("seq_len"), "int32", "ids")
    _, width = sig.outs[0].extents("seq_len")
    out = te.compute(
        (ids.shape[0], width),
        lambda t, d: value(stored, weight, ids[t], d, "float32"),
        "embedding",
    )
    return te.create_prim_func([*weight, ids, out])
