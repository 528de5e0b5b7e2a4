"""How a matrix W [N, K] lies in memory for a CPU: 32 rows side by side, one stream of bytes.

Rows are blocked by 32, so that they lie across vector lanes and every x[k] is broadcast; rows past
the end are zeros. A plain matrix becomes [N / 32, K, 32] in its own type; or [N / 32, K / 2, 64]
bits of bfloat16, where an even column and the next one lie side by side. A group-quantized one
becomes uint32 [N / 32, K / 32, words], one record for each block of rows and group of 32 values:

    bits x 32 words    of as many rows as a vector has lanes, word 0 of each, word 1 of each, ...
    32 scales          in their own type, as words

Of a 4-bit word, byte b holds value 8j + b in its low half and 8j + 4 + b in its high one, with the
stored offset of 7. Of an 8-bit word, byte b holds value 4j + b as a signed byte.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu import bfloat16
from mlc_rwkv_world.kernels.cpu.activation import GROUP
from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.storage.stored import PAIRS, RECORDS, ROWS, SIDE_BY_SIDE, Stored

# What 4-bit values of records are stored with; 8-bit ones are signed.
OFFSET_4BIT = 7


def packed(stored: Stored, *, narrow: bool = False) -> Stored | None:
    """The packed form of a weight that is stored in this way; None where there is none.

    `narrow` plain weights, which need an even number of columns, become bfloat16.
    """
    if not stored.bits:
        return stored.packed(PAIRS if narrow else SIDE_BY_SIDE)
    records = stored in [Stored.symmetric(bits, stored.dtype, GROUP) for bits in (4, 8)]
    return stored.packed(RECORDS) if records else None


def reference_plain(weight: NDArray[Any]) -> NDArray[Any]:
    """weight: [N, K]."""
    rows, inner = weight.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, inner), weight.dtype)
    padded[:rows] = weight
    return np.ascontiguousarray(padded.reshape(-1, ROWS, inner).transpose(0, 2, 1))


def reference_narrow(weight: NDArray[Any]) -> NDArray[np.uint16]:
    """weight: [N, K]."""
    rows = reference_plain(bfloat16.reference(weight))
    blocks, inner, _ = rows.shape
    pairs = rows.reshape(blocks, inner // 2, 2, ROWS).swapaxes(2, 3)
    return np.ascontiguousarray(pairs).reshape(blocks, inner // 2, 2 * ROWS)


def reference_grouped(
    words: NDArray[np.uint32], scales: NDArray[Any], bits: int, lanes: int
) -> NDArray[np.uint32]:
    """words: [N, K * bits / 32]; scales: [N, K / 32]; lanes: of a vector."""
    groups = scales.shape[1]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = (words[:, :, None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint32)
    if bits == 4:
        low, high = values[:, :, :4], values[:, :, 4:]
        stored = low | high << np.uint32(4)
    else:
        stored = (values - np.uint32(127)) & np.uint32(255)
    again = (stored << np.arange(0, 32, 8, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
    blocked = reference_plain(again).reshape(-1, groups, bits, ROWS // lanes, lanes)
    blocked = blocked.swapaxes(2, 3).reshape(-1, groups, bits * ROWS)
    scale = reference_plain(scales).view(np.uint32)
    return np.concatenate([blocked, scale], axis=2)


def pack(sig: Signature) -> tirx.PrimFunc:
    """(weight) or (words, scales) -> packed, which the signature's only `stored` describes.

    Weights of all sizes share a kernel, but that one which ends within a block has its own, as has
    one whose columns are no whole cache lines: so a library has few of them.
    """
    (stored,) = sig.stored
    return _pack_grouped(sig, stored) if stored.form == RECORDS else _pack_plain(sig, stored)


def _pack_plain(sig: Signature, stored: Stored) -> tirx.PrimFunc:
    dtype, out_dtype = sig.args[0].dtype, sig.outs[0].dtype
    whole = sig.args[0].static(0) % ROWS == 0
    # Columns that lie side by side.
    side = sig.outs[0].static(2) // ROWS
    # All of a cache line at once: the same columns of 32 rows share few of the cache's sets.
    tile = math.gcd(sig.args[0].static(1), 32)

    def converted(value: Any) -> Any:
        narrow = stored.form == PAIRS
        return bfloat16.rounded(T.Cast("float32", value), 1) if narrow else value

    def taken(weight: Any, row: Any, rows: Any, column: Any) -> Any:
        value = converted(weight[row, column])
        return value if whole else T.if_then_else(row < rows, value, T.cast(0, out_dtype))

    @T.prim_func(s_tir=True)
    def kernel(var_weight: T.handle, var_out: T.handle) -> None:
        rows, inner, blocks, columns = T.int64(), T.int64(), T.int64(), T.int64()
        weight = T.match_buffer(var_weight, (rows, inner), dtype)
        out = T.match_buffer(var_out, (blocks, columns, side * ROWS), out_dtype)
        for block in T.parallel(blocks):
            for step, r, k in T.grid(inner // tile, ROWS, tile):
                out[block, (step * tile + k) // side, side * r + k % side] = taken(
                    weight, block * ROWS + r, rows, step * tile + k
                )

    return kernel


def _spread(half: Any) -> Any:
    """Four nibbles to the low halves of four bytes."""
    pairs = (half | half << T.uint32(8)) & T.uint32(0x00FF00FF)
    return (pairs | pairs << T.uint32(4)) & T.uint32(0x0F0F0F0F)


def _rearranged(word: Any, bits: int) -> Any:
    if bits == 4:
        return _spread(word & T.uint32(0xFFFF)) | _spread(word >> T.uint32(16)) << T.uint32(4)
    # Every byte minus 127: plus 1 without a carry into the next byte, then plus 128.
    plus_one = (word & T.uint32(0x7F7F7F7F)) + T.uint32(0x01010101)
    return plus_one ^ (word & T.uint32(0x80808080)) ^ T.uint32(0x80808080)


def _pack_grouped(sig: Signature, stored: Stored) -> tirx.PrimFunc:
    whole, record = sig.args[1].static(0) % ROWS == 0, sig.outs[0].static(2)
    bits, scale_dtype, extra = stored.bits, stored.dtype, stored.scale_words
    per_word, width = ROWS // extra, lanes(sig.target)
    # Scales are moved as they are stored, `per_word` of them in a word.
    half = f"uint{32 // per_word}"

    def taken(words: Any, row: Any, rows: Any, column: Any) -> Any:
        if whole:
            return _rearranged(words[row, column], bits)
        # All are read, since a vector's rows are read together.
        word = words[T.min(row, rows - 1), column]
        return T.Select(row < rows, _rearranged(word, bits), T.uint32(0))

    def scale(scales: Any, row: Any, rows: Any, group: Any, h: Any) -> Any:
        word = T.cast(T.reinterpret(half, scales[row, group]), "uint32")
        word = word << T.cast(h * (32 // per_word), "uint32")
        return word if whole else T.if_then_else(row < rows, word, T.uint32(0))

    @T.prim_func(s_tir=True)
    def kernel(var_words: T.handle, var_scales: T.handle, var_out: T.handle) -> None:
        rows, columns, groups, blocks = T.int64(), T.int64(), T.int64(), T.int64()
        words = T.match_buffer(var_words, (rows, columns), "uint32")
        scales = T.match_buffer(var_scales, (rows, groups), scale_dtype)
        out = T.match_buffer(var_out, (blocks, groups, record), "uint32")
        for block in T.parallel(blocks):
            for g in range(groups):
                for v, j in T.grid(ROWS // width, bits):
                    for r in T.vectorized(width):
                        out[block, g, v * width * bits + j * width + r] = taken(
                            words, block * ROWS + v * width + r, rows, g * bits + j
                        )
                for i in range(extra):
                    out[block, g, bits * ROWS + i] = T.uint32(0)
                    for h in range(per_word):
                        out[block, g, bits * ROWS + i] = out[block, g, bits * ROWS + i] | scale(
                            scales, block * ROWS + i * per_word + h, rows, g, h
                        )

    return kernel
