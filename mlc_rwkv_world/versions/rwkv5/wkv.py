"""The recurrence of RWKV-5 and 6, head by head, in float32, on every target.

For a token's r, k and v, a decay w of the channel (5) or of the token (6), and a bonus u,

    y = r (S + u k v),   S <- diag(w) S + k v

`reference.wkv` is its reference.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.head_matrices import Token, pooled_recurrence, recurrence
from mlc_rwkv_world.kernels.cuda.head_matrices import Cell
from mlc_rwkv_world.kernels.signature import Signature


def _of_token(vector: Any, t: Any, channel: Any) -> Any:
    """A token's value of a vector that may be the channel's, the same for each token."""
    return vector[channel] if len(vector.shape) == 1 else vector[t, channel]


@T.inline
def _advance(
    vectors: Any,
    t: Any,
    base: Any,
    first: Any,
    state: Any,
    cell: Any,
    sums: Any,
    size: Any,
    lanes: Any,
) -> None:
    r, k, v, w, u = T.meta_var(vectors)
    for i in T.vectorized(lanes):
        sums[i] = T.float32(0)
    for j in range(T.int64(size)):
        for i in T.vectorized(lanes):
            sums[i] = sums[i] + r[t, base + j] * (
                state[cell(j, first + i)] + u[base + j] * (k[t, base + j] * v[t, base + first + i])
            )
            state[cell(j, first + i)] = (
                state[cell(j, first + i)] * _of_token(w, t, base + j)
                + k[t, base + j] * v[t, base + first + i]
            )


# Of r, k, v, w and u, by their numbers.
CELL = Cell(
    value=2,
    update=lambda s, x, v, _: s * x[3] + x[1] * v,
    read=lambda s, _, x, v: x[0] * (s + x[4] * (x[1] * v)),
)
_TOKEN = Token(vectors=5, sums=1, advance=_advance, cell=CELL)


def wkv(sig: Signature) -> tirx.PrimFunc:
    """(r, k, v, w, u, offsets, state [B, N, D]) -> (y [T, D], state [B, N, D]).

    r, k, v: [T, D]; w: [D] or [T, D]; u: [D]. Where one argument less is given, there are no
    offsets: row i is the next token of sequence i.
    """
    return recurrence(sig, _TOKEN)


def wkv_pooled(sig: Signature, size: int) -> tirx.PrimFunc:
    """(r, k, v, w, u, offsets, pool [S, L, R, D], slots, layer, row) -> y [T, D].

    The heads' matrices are `size` rows of the pool's layer from `row` on, updated in place.
    """
    return pooled_recurrence(sig, _TOKEN, size)
