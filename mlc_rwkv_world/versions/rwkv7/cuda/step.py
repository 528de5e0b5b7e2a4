"""RWKV-7's heads in a step of each sequence on CUDA: recurrence, norm, bonus and gate."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.kernels.cuda.head_end import Ending
from mlc_rwkv_world.kernels.cuda.head_step import head_step
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.versions.rwkv7.wkv import CELL

# r, k and v, by their numbers.
_BONUS = (0, 2, 3)


def step(sig: Signature, size: int, eps: float) -> tirx.PrimFunc:
    """(r, w, k, v, kk, b [B, D], r_k, weight, bias, gate, pool, slots, layer, row) -> [B, D]."""
    return head_step(sig, CELL, _BONUS, Ending(size, eps, bonus=True, gate=True, silu=False))
