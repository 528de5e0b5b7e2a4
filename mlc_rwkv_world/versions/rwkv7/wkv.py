"""RWKV-7's recurrence, head by head, in float32, on every target.

For a token's r, w, k, v, kk and b (`reference.keys` makes the last two),

    S <- diag(w) S - b (kk S) + k v,   y = r S

`reference.wkv` is its reference.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.head_matrices import Token, pooled_recurrence, recurrence
from mlc_rwkv_world.kernels.cuda.head_matrices import Cell
from mlc_rwkv_world.kernels.signature import Signature


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
    r, w, k, v, kk, b = T.meta_var(vectors)
    # y, and what is taken away.
    for i in T.vectorized(lanes):
        sums[i] = T.float32(0)
        sums[lanes + i] = T.float32(0)
    for j in range(T.int64(size)):
        for i in T.vectorized(lanes):
            sums[lanes + i] = sums[lanes + i] + kk[t, base + j] * state[cell(j, first + i)]
    for j in range(T.int64(size)):
        for i in T.vectorized(lanes):
            state[cell(j, first + i)] = (
                state[cell(j, first + i)] * w[t, base + j]
                - sums[lanes + i] * b[t, base + j]
                + k[t, base + j] * v[t, base + first + i]
            )
            sums[i] = sums[i] + r[t, base + j] * state[cell(j, first + i)]


# Of r, w, k, v, kk and b, by their numbers.
CELL = Cell(
    value=3,
    removed=lambda s, x: s * x[4],
    update=lambda s, x, v, removed: s * x[1] - removed * x[5] + x[2] * v,
    read=lambda s, new, x, v: x[0] * new,
)
_TOKEN = Token(vectors=6, sums=2, advance=_advance, cell=CELL)


def wkv(sig: Signature) -> tirx.PrimFunc:
    """(r, w, k, v, kk, b [T, D], offsets, state [B, N, D]) -> (y [T, D], state [B, N, D]).

    Where one argument less is given, there are no offsets: row i is the next token of sequence i.
    """
    return recurrence(sig, _TOKEN)


def wkv_pooled(sig: Signature, size: int) -> tirx.PrimFunc:
    """(r, w, k, v, kk, b [T, D], offsets, pool [S, L, R, D], slots, layer, row) -> y [T, D].

    The heads' matrices are `size` rows of the pool's layer from `row` on, updated in place.
    """
    return pooled_recurrence(sig, _TOKEN, size)
