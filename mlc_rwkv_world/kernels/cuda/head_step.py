"""A step of each sequence by head on CUDA: recurrence, norm, bonus and gate in one launch."""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.common.matrix_place import matrix_place
from mlc_rwkv_world.kernels.cuda import head_matrices
from mlc_rwkv_world.kernels.cuda.head_end import Ending
from mlc_rwkv_world.kernels.cuda.head_matrices import Cell
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

_VECTORS = tuple(f"vector_{letter}" for letter in "abcdef")


def head_step(
    sig: Signature, cell: Cell, bonus: tuple[int, int, int] | None, ending: Ending
) -> tirx.PrimFunc:
    """(vectors..., r_k [H, N], weight, bias [D], gate [B, D], pool, slots, layer, row) -> [B, D].

    The vectors are those of `cell`, [B, D], or [D] where they are the same for all tokens; `bonus`
    are the numbers of r, k and v among them, None where there is no r_k. The heads' matrices are
    rows of the pool's layer from `row` on, updated in place.
    """
    size = ending.size
    count = len(sig.args) - 4 - (bonus is not None) - ending.gate
    ranks = [len(arg.shape) for arg in sig.args[:count]]
    width, out_type = sig.args[0].static(1), sig.outs[0].dtype
    layers, state_rows = (sig.args[-2].static(axis) for axis in (1, 2))
    heads, end = width // size, ending.body()
    index = matrix_place(width, size, pooled=True)
    fixed = [rank == 1 for rank in ranks]

    def own(number: int, batch: Any) -> tuple[Any, ...]:
        return (width,) if number < count and fixed[number] else (batch, width)

    @T.prim_func(s_tir=True)
    def kernel(
        var_a: T.handle,
        var_b: T.handle,
        var_c: T.handle,
        var_d: T.handle,
        var_e: T.handle,
        var_f: T.handle,
        r_k: T.Buffer((heads, size), "float32"),
        weight: T.Buffer((width,), "float32"),
        bias: T.Buffer((width,), "float32"),
        var_gate: T.handle,
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        state_row: T.int64,
        var_out: T.handle,
    ) -> None:
        batch, places = T.int64(), T.int64()
        vector_a = T.match_buffer(var_a, own(0, batch), "float32")
        vector_b = T.match_buffer(var_b, own(1, batch), "float32")
        vector_c = T.match_buffer(var_c, own(2, batch), "float32")
        vector_d = T.match_buffer(var_d, own(3, batch), "float32")
        vector_e = T.match_buffer(var_e, own(4, batch), "float32")
        vector_f = T.match_buffer(var_f, own(5, batch), "float32")
        gate = T.match_buffer(var_gate, (batch, width), "float32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        out = T.match_buffer(var_out, (batch, width), out_type)
        vectors = T.meta_var((vector_a, vector_b, vector_c, vector_d, vector_e, vector_f)[:count])

        @T.inline
        def following(ys, row, head, base, thread):  # type: ignore[no-untyped-def]
            end(
                partial(_value, ys), row, head, base, thread,
                _added(vectors, bonus, r_k), (weight, bias), gate, out,
            )  # fmt: skip

        head_matrices.body(
            sig, size, cell, fixed, index, step=True, pooled=True, following=following
        )(vectors, None, (state, state), slots, layer, state_row, out, batch)

    absent = [*_VECTORS[count:], *(["r_k"] if bonus is None else [])]
    return without(kernel, *absent, *([] if ending.gate else ["gate"]))


def _value(ys: Any, c: Any) -> Any:
    return ys[c]


def _added(vectors: Any, bonus: tuple[int, int, int] | None, r_k: Any) -> list[Any]:
    """What makes a bonus; anything where there is none."""
    return [*(vectors[n] for n in bonus or (0, 0, 0)), r_k]
