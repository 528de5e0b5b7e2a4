"""RWKV-5's and 6's heads in a step of each sequence on CUDA: recurrence, norm and gate."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.kernels.cuda.head_end import Ending
from mlc_rwkv_world.kernels.cuda.head_step import head_step
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv5.wkv import CELL


def step(sig: Signature, size: int, eps: float, *, gate: bool) -> tirx.PrimFunc:
    """(r, k, v, w, u, weight, bias, gate [B, D], pool, slots, layer, row) -> [B, D].

    r, k, v: [B, D]; w: [D] or [B, D]; u, weight, bias: [D]. The gate is under a silu; 5.0 has none.
    """
    return head_step(sig, CELL, None, Ending(size, eps, bonus=False, gate=gate, silu=True))
