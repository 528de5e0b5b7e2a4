"""What mlc_llm's engine does to logits [B, V] in place before it samples.

Each item (a token with a bias or a penalty, or a word of a mask) is one thread's work on a GPU and
one step of a loop on a CPU; no two items touch the same logit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

Array = NDArray[Any]

_GPU_THREADS = 256
_MASK_BITS = 32


class Items:
    """The loops over n items for one target; `count` of the outer, `threads` of the inner one."""

    def __init__(self, target: Target) -> None:
        on_cpu = target.kind.name == "llvm"
        self.threads = 1 if on_cpu else _GPU_THREADS
        self.outer: Any = T.serial if on_cpu else partial(T.thread_binding, thread="blockIdx.x")
        self.inner: Any = T.serial if on_cpu else partial(T.thread_binding, thread="threadIdx.x")

    def blocks(self, items: Any) -> Any:
        return T.truncdiv(items + T.int64(self.threads - 1), T.int64(self.threads))

    def item(self, block: Any, thread: Any) -> Any:
        return T.cast(block, "int64") * T.int64(self.threads) + T.cast(thread, "int64")


def reference_penalty(
    logits: Array, rows: Array, owner: Array, tokens: Array, counts: Array, penalties: Array
) -> Array:
    """`apply_penalty_inplace`, on a copy."""
    logits = logits.copy()
    for who, token, count in zip(owner, tokens, counts, strict=True):
        presence, frequency, repetition = penalties[who]
        value = logits[rows[who], token] - (presence + count * frequency)
        logits[rows[who], token] = value * repetition if value < 0 else value / repetition
    return logits


def apply_logit_bias_inplace(target: Target) -> tirx.PrimFunc:
    """(logits, row of each bias, its token, the bias)."""
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(
        var_logits: T.handle, var_rows: T.handle, var_tokens: T.handle, var_bias: T.handle
    ) -> None:
        batch, vocabulary, count = T.int64(), T.int64(), T.int64()
        logits = T.match_buffer(var_logits, (batch, vocabulary), "float32")
        rows = T.match_buffer(var_rows, (count,), "int32")
        tokens = T.match_buffer(var_tokens, (count,), "int32")
        bias = T.match_buffer(var_bias, (count,), "float32")
        for block in items.outer(items.blocks(count)):
            for thread in items.inner(threads):
                i = T.meta_var(items.item(block, thread))
                if i < count:
                    row: T.let[T.int64] = T.cast(rows[i], "int64")
                    token: T.let[T.int64] = T.cast(tokens[i], "int64")
                    logits[row, token] = logits[row, token] + bias[i]

    return kernel


def apply_penalty_inplace(target: Target) -> tirx.PrimFunc:
    """(logits, row of each sequence, then for each token that a sequence has seen: the sequence,
    the token, how often; and presence, frequency and repetition penalty of each sequence).
    """
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(
        var_logits: T.handle,
        var_rows: T.handle,
        var_owner: T.handle,
        var_tokens: T.handle,
        var_counts: T.handle,
        var_penalties: T.handle,
    ) -> None:
        batch, vocabulary = T.int64(), T.int64()
        count, sequences = T.int64(), T.int64()
        logits = T.match_buffer(var_logits, (batch, vocabulary), "float32")
        rows = T.match_buffer(var_rows, (sequences,), "int32")
        owner = T.match_buffer(var_owner, (count,), "int32")
        tokens = T.match_buffer(var_tokens, (count,), "int32")
        counts = T.match_buffer(var_counts, (count,), "int32")
        penalties = T.match_buffer(var_penalties, (sequences, 3), "float32")
        for block in items.outer(items.blocks(count)):
            for thread in items.inner(threads):
                i = T.meta_var(items.item(block, thread))
                if i < count:
                    who: T.let[T.int64] = T.cast(owner[i], "int64")
                    row: T.let[T.int64] = T.cast(rows[who], "int64")
                    token: T.let[T.int64] = T.cast(tokens[i], "int64")
                    logits[row, token] = logits[row, token] - (
                        penalties[who, 0] + T.cast(counts[i], "float32") * penalties[who, 1]
                    )
                    logits[row, token] = T.if_then_else(
                        logits[row, token] < T.float32(0),
                        logits[row, token] * penalties[who, 2],
                        logits[row, token] / penalties[who, 2],
                    )

    return kernel


def reference_bitmask(logits: Array, rows: Array, mask: Array) -> Array:
    """`apply_bitmask_inplace`, on a copy."""
    logits = logits.copy()
    token = np.arange(logits.shape[1])
    for row in rows:
        bits = mask[row, token // _MASK_BITS] >> (token % _MASK_BITS)
        logits[row, bits & 1 == 0] = np.finfo(np.float32).min
    return logits


def apply_bitmask_inplace(target: Target) -> tirx.PrimFunc:
    """(logits, the rows that have a mask, masks of all rows with 32 tokens in a word).

    A token whose bit is 0 gets the least number, and cannot be sampled.
    """
    items = Items(target)
    threads = items.threads

    @T.prim_func(s_tir=True)
    def kernel(var_logits: T.handle, var_rows: T.handle, var_mask: T.handle) -> None:
        batch, vocabulary = T.int64(), T.int64()
        count, words = T.int64(), T.int64()
        logits = T.match_buffer(var_logits, (batch, vocabulary), "float32")
        rows = T.match_buffer(var_rows, (count,), "int32")
        mask = T.match_buffer(var_mask, (batch, words), "int32")
        for block in items.outer(items.blocks(count * vocabulary)):
            for thread in items.inner(threads):
                i = T.meta_var(items.item(block, thread))
                if i < count * vocabulary:
                    row: T.let[T.int64] = T.cast(rows[T.truncdiv(i, vocabulary)], "int64")
                    token = T.meta_var(T.truncmod(i, vocabulary))
                    bit = T.cast(T.truncmod(token, T.int64(_MASK_BITS)), "int32")
                    word = mask[row, T.truncdiv(token, T.int64(_MASK_BITS))]
                    if T.bitwise_and(T.shift_right(word, bit), 1) == 0:
                        logits[row, token] = T.min_value("float32")

    return kernel
