"""RWKV-7's heads on a CPU: all that happens between a time mix's products, head by head.

A task computes a head of all tokens from end to end: the second factors of the small products, the
decay, the mixed value, the keys, the recurrence, the normalization, the bonus and the gate. The
result is written as the input of the output product. Prompts and steps share one body, so that they
give the same bits. `reference.time_mix` says what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import exp, sigmoid
from mlc_rwkv_world.kernels.cpu.head import Head
from mlc_rwkv_world.kernels.cpu.mix import storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import STACK, Signature
from mlc_rwkv_world.storage.stored import ROWS
from mlc_rwkv_world.versions.rwkv7.reference import DECAY_RATE, LEAST_NORM


def heads(sig: Signature, size: int, eps: float, shared: bool, step: bool) -> tirx.PrimFunc:
    """(r, k, v, value_first [T, D]; hw, ha, hv, hg; w2, a2, v2, g2; w0, a0, v0, k_k, k_a [D],
    r_k [H, N], ln_x weight and bias [D]; offsets; state, slots, layer, row) -> gated.

    The heads' matrices are `size` rows of the state from `row` on. Where values are not `shared`,
    as in block 0, there are no value_first, hv, v2 and v0. In a `step`, row i is the next token of
    sequence i, and there are no offsets.
    """
    width, out_type = sig.args[0].static(1), sig.outs[0]
    pool_type = sig.args[-2]
    small = sig.args[4:12] if shared else sig.args[3:9]
    hidden, factors = small[: len(small) // 2], small[len(small) // 2 :]
    letters = "wavg" if shared else "wag"
    head = Head(sig, size)
    ups = head.ups(hidden, factors, sig.stored)
    types = dict(zip(letters, zip(hidden, factors, strict=True), strict=True))
    # What block 0 lacks, it takes from another in the parameters that are left out.
    types.setdefault("v", types["w"])
    (hw_type, w_type), (ha_type, a_type), (hv_type, v_type), (hg_type, g_type) = (
        types[letter] for letter in "wavg"
    )
    tokens = Product(hidden[0], factors[0], sig.stored[0], sig).tokens
    at, constant, vectors, lanes = head.at, head.constant, head.vectors, head.lanes
    add, norm, recur = head.summed(), head.normalized(eps), _recurrence(head)
    store, out_shape = storing(sig.inputs), out_type.shape[1:]
    find = head.places(pool_type, step)
    layers, state_rows = pool_type.static(1), pool_type.static(2)
    count, groups = width // size, size // ROWS
    # Where a tile's second factors are among those of all letters.
    at_a, at_v, at_g = (max(0, letters.find(letter)) * tokens * size for letter in "avg")

    def pairs(*given: Any) -> list[Any]:
        """Of an input and a weight for each of w, a, v and g, those that there are."""
        return [one for letter, one in zip("wavg", given, strict=True) if letter in letters]

    @T.inline
    def prepare(
        row: Any, base: Any, given: Any, vectors_of: Any, at_t: Any, ready: Any, local: Any
    ) -> None:
        """A token's keys and value: written, removed, minus replaced, value."""
        k, v, value_first = T.meta_var(given)
        k_k, k_a = T.meta_var(vectors_of)
        written, removed, replaced, value = T.meta_var(local)
        part = T.alloc_buffer((lanes,), "float32", scope=STACK)
        part[at(0, 0)] = constant(0.0)
        for j in T.unroll(vectors):
            removed[at(0, j)] = k[row, at(base, j)] * k_k[at(base, j)]
            part[at(0, 0)] = T.fma(removed[at(0, j)], removed[at(0, j)], part[at(0, 0)])
        add(part)
        part[0] = T.float32(1) / T.max(T.sqrt(part[0]), T.float32(LEAST_NORM))
        for j in T.unroll(vectors):
            removed[at(0, j)] = removed[at(0, j)] * constant(part[0])
            replaced[at(0, j)] = constant(0.0) - removed[at(0, j)] * ready[at(at_a + at_t, j)]
            written[at(0, j)] = k[row, at(base, j)] * T.fma(
                ready[at(at_a + at_t, j)] - constant(1.0), k_a[at(base, j)], constant(1.0)
            )
            if shared:
                value[at(0, j)] = T.fma(
                    value_first[row, at(base, j)] - v[row, at(base, j)],
                    ready[at(at_v + at_t, j)],
                    v[row, at(base, j)],
                )
            else:
                value[at(0, j)] = v[row, at(base, j)]

    @T.inline
    def finish(
        row: Any, base: Any, r: Any, vectors_of: Any, at_t: Any, ready: Any, local: Any, out: Any
    ) -> None:
        """What the output product reads, from the recurrence's result."""
        r_k, ln_weight, ln_bias = T.meta_var(vectors_of)
        written, value, y = T.meta_var(local)
        part = T.alloc_buffer((lanes,), "float32", scope=STACK)
        agrees = T.alloc_buffer((1,), "float32", scope=STACK)
        group = T.alloc_buffer((ROWS,), "float32", scope=STACK)
        part[at(0, 0)] = constant(0.0)
        for j in T.unroll(vectors):
            part[at(0, 0)] = T.fma(
                r[row, at(base, j)] * written[at(0, j)],
                r_k[T.truncdiv(base, size), at(0, j)],
                part[at(0, 0)],
            )
        add(part)
        agrees[0] = part[0]
        norm(y, part)
        for n in T.unroll(groups):
            for j in T.unroll(ROWS // lanes):
                group[at(0, j)] = ready[at(at_g + at_t + n * ROWS, j)] * T.fma(
                    constant(agrees[0]),
                    value[at(n * ROWS, j)],
                    T.fma(
                        y[at(n * ROWS, j)],
                        ln_weight[at(base + n * ROWS, j)],
                        ln_bias[at(base + n * ROWS, j)],
                    ),
                )
            store(group, out, row, T.truncdiv(base, ROWS) + n)

    @T.prim_func(s_tir=True)
    def kernel(
        var_r: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_first: T.handle,
        var_hw: T.handle,
        var_ha: T.handle,
        var_hv: T.handle,
        var_hg: T.handle,
        w2: T.Buffer(w_type.shape, w_type.dtype),
        a2: T.Buffer(a_type.shape, a_type.dtype),
        v2: T.Buffer(v_type.shape, v_type.dtype),
        g2: T.Buffer(g_type.shape, g_type.dtype),
        w0: T.Buffer((width,), "float32"),
        a0: T.Buffer((width,), "float32"),
        v0: T.Buffer((width,), "float32"),
        k_k: T.Buffer((width,), "float32"),
        k_a: T.Buffer((width,), "float32"),
        r_k: T.Buffer((count, size), "float32"),
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
        value_first = T.match_buffer(var_first, (rows, width), "float32")
        hw = T.match_buffer(var_hw, (rows, *hw_type.shape[1:]), hw_type.dtype)
        ha = T.match_buffer(var_ha, (rows, *ha_type.shape[1:]), ha_type.dtype)
        hv = T.match_buffer(var_hv, (rows, *hv_type.shape[1:]), hv_type.dtype)
        hg = T.match_buffer(var_hg, (rows, *hg_type.shape[1:]), hg_type.dtype)
        offsets = T.match_buffer(var_offsets, (batch + 1,), "int32")
        state = T.match_buffer(var_state, (places, layers, state_rows, width), "float32")
        slots = T.match_buffer(var_slots, (batch, 2), "int32")
        out = T.match_buffer(var_out, (rows, *out_shape), out_type.dtype)
        for number in T.parallel(count):
            total = T.alloc_buffer((tokens * ROWS,), "float32", scope=STACK)
            # Of a tile: decay, how much replaces, the share of the first value, the gate.
            ready = T.alloc_buffer((len(letters) * tokens * size,), "float32", scope=STACK)
            written = T.alloc_buffer((size,), "float32", scope=STACK)
            removed = T.alloc_buffer((size,), "float32", scope=STACK)
            replaced = T.alloc_buffer((size,), "float32", scope=STACK)
            value = T.alloc_buffer((size,), "float32", scope=STACK)
            y = T.alloc_buffer((size,), "float32", scope=STACK)
            # The sequence of a row, and where its matrix is read and written.
            sequence = T.alloc_buffer((1,), "int64", scope=STACK)
            place = T.alloc_buffer((2,), "int64", scope=STACK)
            matrix = T.decl_buffer(
                (places * T.int64(layers * state_rows * width),), "float32", data=state.data
            )
            base = T.meta_var(number * size)
            sequence[0] = T.int64(0)
            for tile in range((rows + tokens - 1) // tokens):
                each = T.meta_var(pairs((hw, w2), (ha, a2), (hv, v2), (hg, g2)))
                ups(each, number, tile, rows, total, ready)
                for t in range(T.min(tokens, rows - tile * tokens)):
                    for j in T.unroll(vectors):
                        ready[at(t * size, j)] = exp(
                            sigmoid(w0[at(base, j)] + ready[at(t * size, j)], lanes)
                            * constant(-DECAY_RATE),
                            lanes,
                        )
                        ready[at(at_a + t * size, j)] = sigmoid(
                            a0[at(base, j)] + ready[at(at_a + t * size, j)], lanes
                        )
                        if shared:
                            ready[at(at_v + t * size, j)] = sigmoid(
                                v0[at(base, j)] + ready[at(at_v + t * size, j)], lanes
                            )
                    row = T.meta_var(tile * tokens + t)
                    prepare(
                        row,
                        base,
                        (k, v, value_first),
                        (k_k, k_a),
                        t * size,
                        ready,
                        (written, removed, replaced, value),
                    )
                    find(row, number, offsets, slots, layer, state_row, sequence, place)
                    recur(
                        r,
                        row,
                        base,
                        ready,
                        t * size,
                        (written, removed, replaced, value),
                        matrix,
                        place,
                        y,
                    )
                    finish(
                        row,
                        base,
                        r,
                        (r_k, ln_weight, ln_bias),
                        t * size,
                        ready,
                        (written, value, y),
                        out,
                    )

    absent = [] if shared else ["value_first", "hv", "v2", "v0"]
    return without(kernel, *absent, *(["offsets"] if step else []))


def _recurrence(head: Head) -> Callable[..., None]:
    """`recur(r, row, base, w, at_t, (written, removed, replaced, value), matrix, place, y)`.

    S <- diag(w) S + replaced (removed S) + written value, y = r S, from matrix[place[0]] on to
    matrix[place[1]] on; `replaced` has its minus.
    """
    at, constant, size, lanes = head.at, head.constant, head.size, head.lanes
    side, vectors = head.side, head.vectors

    @T.inline
    def recur(
        r: Any,
        row: Any,
        base: Any,
        w: Any,
        at_t: Any,
        local: Any,
        matrix: Any,
        place: Any,
        y: Any,
    ) -> None:
        written, removed, replaced, value = T.meta_var(local)
        for c in T.serial(vectors // side):
            # Even and odd keys, so that additions wait for each other half as long.
            gone = T.alloc_buffer((2 * side * lanes,), "float32", scope=STACK)
            kept = T.alloc_buffer((side * lanes,), "float32", scope=STACK)
            into = T.alloc_buffer((side * lanes,), "float32", scope=STACK)
            new = T.alloc_buffer((lanes,), "float32", scope=STACK)
            for i in T.unroll(2 * side):
                gone[at(0, i)] = constant(0.0)
            for j in range(size // 2):
                for odd in T.unroll(2):
                    for i in T.unroll(side):
                        gone[at(odd * side * lanes, i)] = T.fma(
                            constant(removed[2 * j + odd]),
                            matrix[at(place[0] + (2 * j + odd) * size + c * side * lanes, i)],
                            gone[at(odd * side * lanes, i)],
                        )
            for i in T.unroll(side):
                gone[at(0, i)] = gone[at(0, i)] + gone[at(side * lanes, i)]
                into[at(0, i)] = value[at(c * side * lanes, i)]
                kept[at(0, i)] = constant(0.0)
            for j in range(size):
                for i in T.unroll(side):
                    new[at(0, 0)] = T.fma(
                        constant(written[j]),
                        into[at(0, i)],
                        T.fma(
                            constant(w[at_t + j]),
                            matrix[at(place[0] + j * size + c * side * lanes, i)],
                            constant(replaced[j]) * gone[at(0, i)],
                        ),
                    )
                    matrix[at(place[1] + j * size + c * side * lanes, i)] = new[at(0, 0)]
                    kept[at(0, i)] = T.fma(
                        constant(r[row, base + j]), new[at(0, 0)], kept[at(0, i)]
                    )
            for i in T.unroll(side):
                y[at(c * side * lanes, i)] = kept[at(0, i)]

    chosen: Callable[..., None] = recur
    return chosen
