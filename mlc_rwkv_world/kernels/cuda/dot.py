"""Rows of a stored weight times one row x, on CUDA: a warp sums some rows, its lanes share K.

Weights flow through a ring in shared memory that asynchronous copies fill several steps ahead, so
that how much is under way does not depend on registers (a compiler moves plain loads to their use,
and then waits for memory after each). A warp has a ring of its own and waits for no other. x comes
through the first-level cache, which the copies bypass. Sums are float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.intrinsics import copy_async, copy_commit, copy_wait, sync_warp
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.storage import Stored

# Lanes of a warp.
WARP = 32
# Values of a weight that share a scale.
_GROUP = 32
# Bytes that a lane copies at a time, and a warp along one row.
_PIECE = 16
_STEP = WARP * _PIECE
# 2^23, whose float32 has the ones in the lowest bit: or-ing an integer below 2^23 into it adds it.
_MAGIC = 0x4B000000
_MAGIC_VALUE = 8388608.0
# Fields in the lower half of a word stay below 2^23 where they are.
_HALF = 16
_BYTES = {"float32": 4, "float16": 2, "uint32": 4}


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A stored weight [outer, inner] as copies see it: rows of elements of its first tensor."""

    stored: Stored
    outer: int
    inner: int

    @classmethod
    def of(cls, x: TensorType, weight: TensorType, stored: Stored) -> Streamed:
        """From the types of x [M, K] and of the weight's first tensor."""
        return cls(stored, weight.static(0), x.static(1))

    @property
    def bits(self) -> int:
        """How wide a value is; 0 where the weight is plain."""
        return self.stored.bits

    @property
    def dtype(self) -> str:
        """The type of an element."""
        return "uint32" if self.bits else self.stored.dtype

    @property
    def per_element(self) -> int:
        """Values in one element."""
        return self.stored.per_element

    @property
    def width(self) -> int:
        """Elements of a stored row."""
        return self.inner // self.per_element

    @property
    def step_width(self) -> int:
        """Elements of a row that a warp copies in one step."""
        return _STEP // _BYTES[self.dtype]

    @property
    def steps(self) -> int:
        """Steps of a warp along a row, the last of which may be partly beyond its end."""
        return -(-self.width // self.step_width)

    @property
    def step_groups(self) -> int:
        """Scales of a row that belong to one step."""
        return self.step_width * self.per_element // self.stored.group if self.bits else 0

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.inner // self.stored.group if self.bits else 0

    @property
    def can_stream(self) -> bool:
        """Whether the kernels know its values, and rows and scales begin where copies may."""
        if self.bits and (self.bits not in (4, 8) or self.stored.group != _GROUP):
            return False
        scales = self.groups * _BYTES[self.stored.dtype] if self.bits else 0
        return self.width * _BYTES[self.dtype] % _PIECE == 0 and scales % _PIECE == 0


@T.inline
def sum_over_lanes(total, i, lanes):  # type: ignore[no-untyped-def]
    """Replaces `total[i]` of each lane by the sum over `lanes` neighbours, a power of two."""
    for d in T.unroll(lanes.bit_length() - 1):
        total[i] = total[i] + T.tvm_warp_shuffle_xor(
            T.uint32(0xFFFFFFFF), total[i], lanes // 2 >> d, WARP, WARP
        )


@T.inline
def sum_over_warp(total, count):  # type: ignore[no-untyped-def]
    """Replaces `total[0 .. count]` of each lane by the sums over its warp."""
    for i in T.unroll(count):
        sum_over_lanes(total, i, WARP)


def _field(word: Any, position: int, stored: Stored) -> Any:
    """The value at `position` of a word, less its offset, times 2^(position * bits % 16)."""
    bits, zero = stored.bits, stored.offset
    offset = position * bits % _HALF
    half = word if position * bits < _HALF else word >> T.uint32(_HALF)
    mask = ((1 << bits) - 1) << offset
    raised = (half & T.uint32(mask)) | T.uint32(_MAGIC)
    return T.reinterpret("float32", raised) - T.float32(_MAGIC_VALUE + (zero << offset))


def word_dot(word: Any, xs: Any, stored: Stored) -> Any:
    """The sum of a word's values times float32 `xs[i]`, before scaling."""
    bits = stored.bits
    per_half = _HALF // bits
    total = None
    for low in reversed(range(per_half)):
        high = low + per_half
        part = _field(word, low, stored) * xs[low] + _field(word, high, stored) * xs[high]
        total = part if total is None else total * T.float32(2.0**-bits) + part
    return total


@dataclasses.dataclass(frozen=True)
class Stream:
    """The rings of a block's warps for weights of one kind, and the steps along them.

    Each of `slots` of a stage holds one row's step: `rows` rows of each of some weights. `splits`
    warps share the steps of a row; `part` says which of them this is.
    """

    weight: Streamed
    slots: int
    stages: int
    splits: int

    @property
    def turns(self) -> int:
        """Steps of one warp, of which the last few may be beyond the row's end."""
        return -(-self.weight.steps // self.splits)

    def ring(self, warps: int) -> tuple[list[int], str]:
        """Shape and type of the shared array for the weights."""
        return [warps, self.stages, self.slots, self.weight.step_width], self.weight.dtype

    def scale_ring(self, warps: int) -> tuple[list[int], str]:
        """Shape and type of the shared array for the scales; one element where there are none."""
        if not self.weight.bits:
            return [1, 1, 1, 1], "float16"
        return [warps, self.stages, self.slots, self.weight.step_groups], self.weight.stored.dtype

    def start(self) -> Any:
        """A body that starts copying step `turn` of one row into its slot.

        Called as `body(ring, scales, weight, scale, warp, slot, row, lane, part, turn)`; `scale` is
        any tensor where there are no scales.
        """
        one, stages, turns = self.weight, self.stages, self.turns
        piece = _PIECE // _BYTES[one.dtype]
        width, step_width, exact = one.width, one.step_width, self._exact
        scale_piece = _PIECE // _BYTES[one.stored.dtype] if one.bits else 1
        scale_lanes, groups = one.step_groups // scale_piece, one.groups

        @T.inline
        def body(ring, scales, weight, scale, warp, slot, row, lane, part, turn):  # type: ignore[no-untyped-def]
            at = T.meta_var((part * turns + turn) * step_width + lane * piece)
            inside = T.meta_var(T.bool(True) if exact else at < width)
            copy_async(
                T.address_of(ring[warp, turn % stages, slot, lane * piece]),
                T.address_of(weight[row, T.if_then_else(inside, at, 0)]),
                T.if_then_else(inside, _PIECE, 0),
            )
            if groups > 0:
                first = T.meta_var((part * turns + turn) * one.step_groups + lane * scale_piece)
                within = T.meta_var(T.bool(True) if exact else first < groups)
                if lane < scale_lanes:
                    copy_async(
                        T.address_of(scales[warp, turn % stages, slot, lane * scale_piece]),
                        T.address_of(scale[row, T.if_then_else(within, first, 0)]),
                        T.if_then_else(within, _PIECE, 0),
                    )

        return body

    @property
    def _exact(self) -> bool:
        """Whether no step of any warp reaches beyond a row's end."""
        whole = self.weight.width % self.weight.step_width == 0
        return whole and self.weight.steps == self.turns * self.splits

    def add(self, x_type: str, rows: int) -> Any:
        """A body that adds step `turn` of `rows` rows to `total[first + r]`.

        Called as `body(total, first, ring, scales, x, warp, slot, lane, part, turn)`.
        """
        one, stages, turns, exact = self.weight, self.stages, self.turns, self._exact
        step_width, width = one.step_width, one.width
        bits, per_word = one.bits, one.per_element
        per_lane = step_width // WARP
        stored, group_words = one.stored, one.stored.group // per_word
        # Values of x that are read at a time.
        x_piece = min(per_word if bits else per_lane, _PIECE // _BYTES[x_type])

        def clamped(at: Any, count: int) -> Any:
            # What lies beyond a row's end was copied as zeros, and takes any values of x.
            return at if exact else T.min(at, width - count)

        @T.inline
        def plain(total, first, ring, scales, x, warp, slot, lane, part, turn):  # type: ignore[no-untyped-def]
            values = T.alloc_buffer((rows, per_lane), one.dtype, scope="local")
            xs = T.alloc_buffer((per_lane,), x_type, scope="local")
            at = T.meta_var(clamped((part * turns + turn) * step_width + lane * per_lane, per_lane))
            for c in T.unroll(per_lane // x_piece):
                for i in T.vectorized(x_piece):
                    xs[c * x_piece + i] = x[0, at + c * x_piece + i]
            for r in T.unroll(rows):
                for i in T.vectorized(per_lane):
                    values[r, i] = ring[warp, turn % stages, slot + r, lane * per_lane + i]
            for i in T.unroll(per_lane):
                for r in T.unroll(rows):
                    total[first + r] = total[first + r] + T.cast(values[r, i], "float32") * T.cast(
                        xs[i], "float32"
                    )

        @T.inline
        def grouped(total, first, ring, scales, x, warp, slot, lane, part, turn):  # type: ignore[no-untyped-def]
            words = T.alloc_buffer((rows,), "uint32", scope="local")
            xs = T.alloc_buffer((per_word,), x_type, scope="local")
            xf = T.alloc_buffer((per_word,), "float32", scope="local")
            # Lanes take words in turn, so that they read neighbouring pieces of x.
            for j in T.unroll(per_lane):
                at = T.meta_var(clamped((part * turns + turn) * step_width + j * WARP + lane, 1))
                for c in T.unroll(per_word // x_piece):
                    for i in T.vectorized(x_piece):
                        xs[c * x_piece + i] = x[0, at * per_word + c * x_piece + i]
                for i in T.unroll(per_word):
                    xf[i] = T.cast(xs[i], "float32")
                for r in T.unroll(rows):
                    words[r] = ring[warp, turn % stages, slot + r, j * WARP + lane]
                    total[first + r] = total[first + r] + word_dot(words[r], xf, stored) * T.cast(
                        scales[warp, turn % stages, slot + r, (j * WARP + lane) // group_words],
                        "float32",
                    )

        return grouped if bits else plain


def pipeline(turns: int, stages: int, start: Any, add: Any) -> Any:
    """A body that runs `start(turn)` some steps ahead of `add(turn)`, for every step."""

    @T.inline
    def body():  # type: ignore[no-untyped-def]
        for turn in T.unroll(stages - 1):
            if turn < turns:
                start(turn)
            copy_commit()
        for turn in range(turns):
            copy_wait(stages - 2)
            sync_warp()
            if turn + (stages - 1) < turns:
                start(turn + (stages - 1))
            copy_commit()
            add(turn)
        # Another pipeline may fill the ring again.
        sync_warp()

    return body
