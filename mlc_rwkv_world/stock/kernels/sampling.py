"""What mlc_llm's engine asks of a GPU library to draw tokens there: three small kernels.

One thread serves one sample. Probabilities [B, V] are float32, ids and rows int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

from mlc_rwkv_world.stock.kernels.logits import Items

Array = NDArray[Any]


def reference_sample(
    sorted_probs: Array, sorted_ids: Array, uniform: Array, rows: Array, top_p: Array
) -> Array:
    """`sample_with_top_p`, in float64: ids [N]."""
    chosen = []
    for u, row in zip(uniform, rows, strict=True):
        sums = np.cumsum(sorted_probs[row].astype(np.float64))
        count = min(int(np.searchsorted(sums, top_p[row])) + 1, sums.size)
        index = int(np.searchsorted(sums[:count], u * sums[count - 1], side="right"))
        chosen.append(sorted_ids[row, min(index, count - 1)])
    return np.array(chosen, np.int32)


def reference_draw(probs: Array, uniform: Array, rows: Array) -> Array:
    """`multinomial_from_uniform`, in float64: ids [N]."""
    sums = np.cumsum(probs.astype(np.float64), axis=1)
    found = [np.searchsorted(sums[row], u, "right") for u, row in zip(uniform, rows, strict=True)]
    return np.array(found, np.int32)


def multinomial_from_uniform(target: Target, vocab_size: int) -> tirx.PrimFunc:
    """(probabilities, their sums up to each id, u of each sample, its row) -> ids [N].

    The first id of any probability up to which they sum to more than u.
    """
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(
        var_probs: T.handle,
        var_sums: T.handle,
        var_uniform: T.handle,
        var_rows: T.handle,
        var_chosen: T.handle,
    ) -> None:
        batch, count = T.int64(), T.int64()
        probs = T.match_buffer(var_probs, (batch, vocab_size), "float32")
        sums = T.match_buffer(var_sums, (batch, vocab_size), "float32")
        uniform = T.match_buffer(var_uniform, (count,), "float32")
        rows = T.match_buffer(var_rows, (count,), "int32")
        chosen = T.match_buffer(var_chosen, (count,), "int32")
        for block in items.outer(items.blocks(count)):
            for thread in items.inner(threads):
                low = T.alloc_buffer((1,), "int32", scope="local")
                high = T.alloc_buffer((1,), "int32", scope="local")
                n = T.meta_var(items.item(block, thread))
                if n < count:
                    row: T.let[T.int64] = T.cast(rows[n], "int64")
                    low[0] = 0
                    high[0] = T.int32(vocab_size - 1)
                    while low[0] < high[0]:
                        if sums[row, T.cast((low[0] + high[0]) // 2, "int64")] > uniform[n]:
                            high[0] = (low[0] + high[0]) // 2
                        else:
                            low[0] = (low[0] + high[0]) // 2 + 1
                    # Sums that were made in pieces may grow where no probability is.
                    while T.And(
                        low[0] < T.int32(vocab_size - 1),
                        probs[row, T.cast(low[0], "int64")] <= T.float32(0),
                    ):
                        low[0] = low[0] + 1
                    chosen[n] = low[0]

    return kernel


def sample_with_top_p(target: Target, vocab_size: int) -> tirx.PrimFunc:
    """(sorted probabilities, their ids, u of each sample, its row, top_p of each row) -> ids [N].

    The likeliest tokens whose probabilities reach top_p share all of it; of those, the first one
    up to which they sum to more than u.
    """
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(
        var_probs: T.handle,
        var_ids: T.handle,
        var_uniform: T.handle,
        var_rows: T.handle,
        var_top_p: T.handle,
        var_chosen: T.handle,
    ) -> None:
        batch, count = T.int64(), T.int64()
        probs = T.match_buffer(var_probs, (batch, vocab_size), "float32")
        ids = T.match_buffer(var_ids, (batch, vocab_size), "int32")
        uniform = T.match_buffer(var_uniform, (count,), "float32")
        rows = T.match_buffer(var_rows, (count,), "int32")
        top_p = T.match_buffer(var_top_p, (batch,), "float32")
        chosen = T.match_buffer(var_chosen, (count,), "int32")
        for block in items.outer(items.blocks(count)):
            for thread in items.inner(threads):
                total = T.alloc_buffer((1,), "float32", scope="local")
                seen = T.alloc_buffer((1,), "float32", scope="local")
                kept = T.alloc_buffer((1,), "int32", scope="local")
                index = T.alloc_buffer((1,), "int32", scope="local")
                n = T.meta_var(items.item(block, thread))
                if n < count:
                    row: T.let[T.int64] = T.cast(rows[n], "int64")
                    total[0] = probs[row, 0]
                    kept[0] = 1
                    while T.And(kept[0] < T.int32(vocab_size), total[0] < top_p[row]):
                        total[0] = total[0] + probs[row, T.cast(kept[0], "int64")]
                        kept[0] = kept[0] + 1
                    seen[0] = probs[row, 0]
                    index[0] = 0
                    while T.And(index[0] < kept[0] - 1, seen[0] <= uniform[n] * total[0]):
                        index[0] = index[0] + 1
                        seen[0] = seen[0] + probs[row, T.cast(index[0], "int64")]
                    chosen[n] = ids[row, T.cast(index[0], "int64")]

    return kernel


def sampler_take_probs(target: Target, vocab_size: int) -> tirx.PrimFunc:
    """(probabilities, ids by falling probability, row of each sample, its id, places r * V + k)

    -> the probability of each sample's id [N]; probability and id of the k-th likeliest of row r,
    for each place [P].
    """
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(
        var_probs: T.handle,
        var_ids: T.handle,
        var_rows: T.handle,
        var_chosen: T.handle,
        var_places: T.handle,
        var_chosen_probs: T.handle,
        var_place_probs: T.handle,
        var_place_ids: T.handle,
    ) -> None:
        batch, count, positions = T.int64(), T.int64(), T.int64()
        probs = T.match_buffer(var_probs, (batch, vocab_size), "float32")
        ids = T.match_buffer(var_ids, (batch, vocab_size), "int32")
        rows = T.match_buffer(var_rows, (count,), "int32")
        chosen = T.match_buffer(var_chosen, (count,), "int32")
        places = T.match_buffer(var_places, (positions,), "int32")
        chosen_probs = T.match_buffer(var_chosen_probs, (count,), "float32")
        place_probs = T.match_buffer(var_place_probs, (positions,), "float32")
        place_ids = T.match_buffer(var_place_ids, (positions,), "int32")
        for block in items.outer(items.blocks(count + positions)):
            for thread in items.inner(threads):
                n = T.meta_var(items.item(block, thread))
                if n < count:
                    row: T.let[T.int64] = T.cast(rows[n], "int64")
                    chosen_probs[n] = probs[row, T.cast(chosen[n], "int64")]
                if T.And(count <= n, n < count + positions):
                    place: T.let[T.int64] = T.cast(places[n - count], "int64")
                    line = T.meta_var(T.truncdiv(place, T.int64(vocab_size)))
                    id_ = ids[line, T.truncmod(place, T.int64(vocab_size))]
                    place_ids[n - count] = id_
                    place_probs[n - count] = probs[line, T.cast(id_, "int64")]

    return kernel
