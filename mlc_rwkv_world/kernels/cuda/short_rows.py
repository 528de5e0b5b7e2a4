"""Short rows of a stored weight times values in shared memory, on CUDA.

A few lanes share a row, and each reads its pieces of it at once: a ring of copies, as `dot` has,
would be mostly empty. Sums are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cuda.dot import sum_over_lanes, word_dot
from mlc_rwkv_world.storage import Stored

_PIECE = 16
_BYTES = {"float32": 4, "float16": 2, "uint32": 4}
# Lanes that share a row, neighbours in a warp.
SHARERS = 4


@dataclasses.dataclass(frozen=True)
class Short:
    """A weight with rows of `inner` values."""

    stored: Stored
    inner: int

    @property
    def suits(self) -> bool:
        """Whether its values are known here."""
        return self.stored.bits in (0, 4, 8)

    @property
    def _dtype(self) -> str:
        return "uint32" if self.stored.bits else self.stored.dtype

    def dot(self) -> Callable[..., None]:
        """`body(total, n, weight, scale, row, part, x, first)`, inlined.

        Adds this lane's part of the product of a row with x[first], x[first + 1], ... to total[n].
        """
        stored, per_element = self.stored, self.stored.per_element
        width, dtype, bits = self.inner // per_element, self._dtype, self.stored.bits
        most = _PIECE // _BYTES[dtype]
        # The longest that rows consist of, and every lane gets one.
        piece = next(
            n for n in (most, 4, 2, 1) if width % n == 0 and (n * SHARERS <= width or n == 1)
        )
        turns = -(-width // (piece * SHARERS))
        exact = turns * piece * SHARERS == width
        group = stored.group_size(self.inner)

        @T.inline
        def body(
            total: Any, n: Any, weight: Any, scale: Any, row: Any, part: Any, x: Any, first: Any
        ) -> None:
            raw = T.alloc_buffer((piece,), dtype, scope="local")
            for turn in T.unroll(turns):
                at = T.meta_var((turn * SHARERS + part) * piece)
                if exact or at < width:
                    for i in T.vectorized(piece):
                        raw[i] = weight[row, at + i]
                    for i in T.unroll(piece):
                        if bits > 0:
                            total[n] = total[n] + word_dot(
                                raw[i],
                                _values(x, first + (at + i) * per_element, per_element),
                                stored,
                            ) * T.cast(scale[row, (at + i) * per_element // group], "float32")
                        else:
                            total[n] = total[n] + T.cast(raw[i], "float32") * x[first + at + i]

        chosen: Callable[..., None] = body
        return chosen


def _values(x: Any, first: Any, count: int) -> list[Any]:
    return [x[first + i] for i in range(count)]


@T.inline
def sum_over_sharers(total, count):  # type: ignore[no-untyped-def]
    """Replaces `total[0 .. count]` of each lane by the sums over those that share its row."""
    for i in T.unroll(count):
        sum_over_lanes(total, i, SHARERS)
