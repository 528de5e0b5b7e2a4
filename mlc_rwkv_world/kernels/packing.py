"""How group-quantized values lie in 32-bit words (the `_1` layouts).

A row of K values becomes K / (32 / bits) words; value k stands in word k // (32 / bits) at bit
k % (32 / bits) * bits, stored with the offset 2^(bits - 1) - 1. Each group of 32 has one scale.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

GROUP_SIZE = 32


def values_per_word(bits: int) -> int:
    """How many values one 32-bit word holds."""
    return 32 // bits


def bits_of(words: int, values: int) -> int:
    """How wide the values are when a row of `values` of them takes `words` words."""
    return 32 * words // values


def unpack(word: Any, position: Any, bits: int) -> Any:
    """The value at `position` (an integer or int32) of a word, as float32, before scaling."""
    shift = tirx.Cast("uint32", position * bits)
    stored = (word >> shift) & tirx.const((1 << bits) - 1, "uint32")
    zero_point = (1 << (bits - 1)) - 1
    return (stored.astype("int32") - zero_point).astype("float32")
