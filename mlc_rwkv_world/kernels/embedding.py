"""Rows of an embedding by token id, as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from mlc_rwkv_world.kernels.packing import GROUP_SIZE, bits_of, unpack, values_per_word
from mlc_rwkv_world.kernels.signature import Signature


def reference(weight: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.float32]:
    """weight: [V, D]; ids: [T]."""
    return np.asarray(weight[ids], dtype=np.float32)


def embedding(sig: Signature) -> tirx.PrimFunc:
    """(weight, ids) -> [T, D]."""
    weight = te.placeholder(sig.args[0].extents(), sig.args[0].dtype, "weight")
    ids = te.placeholder(sig.args[1].extents("seq_len"), "int32", "ids")
    out = te.compute(
        (ids.shape[0], weight.shape[1]),
        lambda t, d: weight[ids[t], d].astype("float32"),
        "embedding",
    )
    return te.create_prim_func([weight, ids, out])


def embedding_dequantize(sig: Signature) -> tirx.PrimFunc:
    """(q_weight, q_scale, ids) -> [T, D]."""
    q_weight = te.placeholder(sig.args[0].extents(), "uint32", "q_weight")
    q_scale = te.placeholder(sig.args[1].extents(), sig.args[1].dtype, "q_scale")
    ids = te.placeholder(sig.args[2].extents("seq_len"), "int32", "ids")
    _, width = sig.outs[0].extents("seq_len")
    bits = bits_of(sig.args[0].static(1), sig.outs[0].static(1))
    count = values_per_word(bits)

    def value(t: Any, d: Any) -> Any:
        scale = q_scale[ids[t], d // GROUP_SIZE].astype("float32")
        return unpack(q_weight[ids[t], d // count], (d % count).astype("int32"), bits) * scale

    out = te.compute((ids.shape[0], width), value, "embedding")
    return te.create_prim_func([q_weight, q_scale, ids, out])
