"""RWKV-5's and 6's heads on a CPU: all that happens between a time mix's products, head by head.

A task computes a head of all tokens from end to end: the decay, the recurrence, the normalization
and the gate. The result is written as the input of the output product. Prompts and steps share one
body, so that they give the same bits. `reference.after_mixes` says what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import exp
from mlc_rwkv_world.kernels.cpu.head import Head
from mlc_rwkv_world.kernels.cpu.mix import storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature
from mlc_rwkv_world.storage.stored import ROWS


def heads(
    sig: Signature, size: int, eps: float, gated: bool, fixed: bool, step: bool
) -> tirx.PrimFunc:
    """(r, k, v, g [T, D]; hw, w2; decay [H, N] or [D], first [H, N], ln_x weight and bias [D];
    offsets; state, slots, layer, row) -> gated.

    The heads' matrices are `size` rows of the state from `row` on. g is there if `gated`. A
    `fixed` decay is that of each token, else it is added to the product of hw and w2, which are not
    there otherwise. In a `step`, row i is the next token of sequence i, and there are no offsets.
    """
    width, out_type, pool_type = sig.args[0].static(1), sig.outs[0], sig.args[-2]
    count, groups = width // size, size // ROWS
    head = Head(sig, size)
    at, constant, vectors, lanes = head.at, head.constant, head.vectors, head.lanes
    norm, recur, find = head.normalized(eps), _recurrence(head), head.places(pool_type, step)
    store, out_shape = storing(sig.inputs), out_type.shape[1:]
    layers, state_rows = pool_type.static(1), pool_type.static(2)
    # What a fixed decay lacks is of any type in the parameters that are left out.
    place_of_hidden = 3 + gated
    h_type, w_type = sig.args[place_of_hidden : place_of_hidden + 2]
    decay_shape = sig.args[place_of_hidden + (0 if fixed else 2)].shape
    ups: Any = None if fixed else head.ups([h_type], [w_type], sig.stored)
    tokens = 1 if fixed else Product(h_type, w_type, sig.stored[0], sig).tokens

    def of_head(vector: Any, number: Any, j: Any) -> Any:
        """Vector j of a head's channels, of a parameter [H, N] or [D]."""
        if len(vector.shape) == 2:
            return vector[number, at(0, j)]
        return vector[at(number * size, j)]

    def kept(rate: Any) -> Any:
        """What a step leaves of a channel."""
        return exp(constant(0.0) - exp(rate, lanes), lanes)

    @T.inline
    def finish(row: Any, base: Any, g: Any, vectors_of: Any, y: Any, out: Any) -> None:
        """What the output product reads, from the recurrence's result."""
        ln_weight, ln_bias = T.meta_var(vectors_of)
        part = T.alloc_buffer((lanes,), "float32", scope=STACK)
        group = T.alloc_buffer((ROWS,), "float32", scope=STACK)
        norm(y, part)
        for n in T.unroll(groups):
            for j in T.unroll(ROWS // lanes):
                group[at(0, j)] = T.fma(
                    y[at(n * ROWS, j)],
                    ln_weight[at(base + n * ROWS, j)],
                    ln_bias[at(base + n * ROWS, j)],
                )
                if gated:
                    group[at(0, j)] = group[at(0, j)] * g[row, at(base + n * ROWS, j)]
            store(group, out, row, T.truncdiv(base, ROWS) + n)

    @T.prim_func(s_tir=True)
    def kernel(
        var_r: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_g: T.handle,
        var_hw: T.handle,
        w2: T.Buffer(w_type.shape, w_type.dtype),
        decay: T.Buffer(decay_shape, "float32"),
        first: T.Buffer((count, size), "float32"),
        ln_weight: T.Buffer((width,), "float32"),
        ln_bias: T.Buffer((width,), "float32"),
        var_offsets: T.handle,
        var_state: T.handle,
        var_slots: T.handle,
        layer: T.int64,
        state_row: T.int64,
        var_out: T.handle,
    ) -> None:
        seq_len, batch, places = T.int64(), T.int64(), T.int64()
        rows = T.meta_var(batch if step else seq_len)
        r = T.match_buffer(var_r, (rows, width), "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        g = T.match_buffer(var_g, (rows, width), "float32")
        hw = T.match_buffer(var_hw, (rows, *h_type.shape[1:]), h_type.dtype)
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        out = T.match_buffer(var_out, (rows, *out_shape), out_type.dtype)
        for number in T.parallel(count):
            total = T.alloc_buffer((tokens * ROWS,), "float32", scope=STACK)
            # Of a tile's tokens, or of all.
            w = T.alloc_buffer((tokens * size,), "float32", scope=STACK)
            y = T.alloc_buffer((size,), "float32", scope=STACK)
            # The sequence of a row, and where its matrix is read and written.
            sequence = T.alloc_buffer((1,), "int64", scope=STACK)
            place = T.alloc_buffer((2,), "int64", scope=STACK)
            matrix = T.decl_buffer(
                (places * T.int64(layers * state_rows * width),), "float32", data=state.data
            )
            sequence[0] = T.int64(0)
            if fixed:
                for j in T.unroll(vectors):
                    w[at(0, j)] = kept(of_head(decay, number, j))
            for tile in range((rows + tokens - 1) // tokens):
                if not fixed:
                    ups([(hw, w2)], number, tile, rows, total, w)
                for t in range(T.min(tokens, rows - tile * tokens)):
                    row = T.meta_var(tile * tokens + t)
                    if not fixed:
                        for j in T.unroll(vectors):
                            w[at(t * size, j)] = kept(
                                of_head(decay, number, j) + w[at(t * size, j)]
                            )
                    find(row, number, offsets, slots, layer, state_row, sequence, place)
                    recur((r, k, v), first, row, number, w, t * size, matrix, place, y)
                    finish(row, number * size, g, (ln_weight, ln_bias), y, out)

    absent = [] if gated else ["g"]
    absent += ["hw", "w2"] if fixed else []
    return without(kernel, *absent, *(["offsets"] if step else []))


def _recurrence(head: Head) -> Callable[..., None]:
    """`recur((r, k, v), first, row, head, w, at_t, matrix, place, y)`.

    y = r (S + first k v), S <- diag(w) S + k v, from matrix[place[0]] on to matrix[place[1]] on.
    """
    at, constant, size, lanes = head.at, head.constant, head.size, head.lanes
    side, vectors, add = head.side, head.vectors, head.summed()

    @T.inline
    def recur(
        given: Any,
        first: Any,
        row: Any,
        number: Any,
        w: Any,
        at_t: Any,
        matrix: Any,
        place: Any,
        y: Any,
    ) -> None:
        r, k, v = T.meta_var(given)
        base = T.meta_var(number * size)
        # How much of the new value r reads at once: the same in each value channel.
        agrees = T.alloc_buffer((lanes,), "float32", scope=STACK)
        agrees[at(0, 0)] = constant(0.0)
        for j in T.unroll(vectors):
            agrees[at(0, 0)] = T.fma(
                r[row, at(base, j)] * first[number, at(0, j)],
                k[row, at(base, j)],
                agrees[at(0, 0)],
            )
        add(agrees)
        for c in T.serial(vectors // side):
            read = T.alloc_buffer((side * lanes,), "float32", scope=STACK)
            into = T.alloc_buffer((side * lanes,), "float32", scope=STACK)
            old = T.alloc_buffer((lanes,), "float32", scope=STACK)
            for i in T.unroll(side):
                into[at(0, i)] = v[row, at(base + c * side * lanes, i)]
                read[at(0, i)] = constant(0.0)
            for j in range(size):
                for i in T.unroll(side):
                    old[at(0, 0)] = matrix[at(place[0] + j * size + c * side * lanes, i)]
                    read[at(0, i)] = T.fma(
                        constant(r[row, base + j]), old[at(0, 0)], read[at(0, i)]
                    )
                    matrix[at(place[1] + j * size + c * side * lanes, i)] = T.fma(
                        constant(w[at_t + j]),
                        old[at(0, 0)],
                        constant(k[row, base + j]) * into[at(0, i)],
                    )
            for i in T.unroll(side):
                y[at(c * side * lanes, i)] = T.fma(
                    constant(agrees[0]), into[at(0, i)], read[at(0, i)]
                )

    chosen: Callable[..., None] = recur
    return chosen
