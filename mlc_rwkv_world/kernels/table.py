"""Which kernel computes which of the named operations that every version may consist of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx

from mlc_rwkv_world.kernels.common import embedding, state, token_shift
from mlc_rwkv_world.kernels.signature import Signature

Kernel = Callable[[Signature], tirx.PrimFunc]

NAMED: Mapping[str, Kernel] = {
    "embedding": embedding.embedding,
    "last_token": token_shift.last_token,
    "state_get": state.state_get,
    "state_set": state.state_set,
    "token_shift": token_shift.token_shift,
}
