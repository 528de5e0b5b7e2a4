"""Which kernel computes which named operation."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from mlc_rwkv_world.kernels import embedding, offsets, state, token_shift, wkv_cuda
from mlc_rwkv_world.kernels import wkv as wkv_anywhere
from mlc_rwkv_world.kernels.signature import Signature

Kernel = Callable[[Signature], tirx.PrimFunc]


def wkv(sig: Signature) -> tirx.PrimFunc:
    """The recurrence over whole sequences."""
    return wkv_cuda.wkv(sig) if wkv_cuda.suits(sig) else wkv_anywhere.wkv(sig)


NAMED: dict[str, Kernel] = {
    "embedding": embedding.embedding,
    "last_token": token_shift.last_token,
    "offsets_from_positions": offsets.offsets_from_positions,
    "state_get": state.state_get,
    "state_set": state.state_set,
    "token_shift": token_shift.token_shift,
    "whole_offsets": offsets.whole_offsets,
    "wkv": wkv,
    "wkv_step": wkv_anywhere.wkv_step,
}
