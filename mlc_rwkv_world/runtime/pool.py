"""The pool that an engine keeps its states in: one tensor of slots, of which a state has one.

What a slot holds never changes once a call has written it whole: a call reads some slots and writes
others. So a state that is copied shares its slot, and a call that fails or is interrupted has
changed nothing that anybody holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_rwkv_world.runtime import tvm_runtime

Array = npt.NDArray[np.float32]

_FIRST_SLOTS = 4


class Slot:
    """A slot as long as somebody holds it; then it is free again."""

    def __init__(self, index: int, free: list[int]) -> None:
        self.index = index
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.index)


class Pool:
    """Slots [L, R, D] of one float32 tensor [S, L, R, D], which moves when it grows.

    Slots can be given back from any thread; all else wants callers that take turns.
    """

    def __init__(self, fresh: Array, device: Any) -> None:
        self.shape: tuple[int, ...] = fresh.shape
        self._device = device
        # The lowest is taken first.
        self._free = list(reversed(range(_FIRST_SLOTS)))
        self.tensor = self._allocate(_FIRST_SLOTS)
        # What a sequence that has read nothing reads.
        self.fresh = self.take()
        self.write(self.fresh, fresh)

    def take(self) -> Slot:
        """A slot whose content is undefined."""
        if not self._free:
            self._grow()
        return Slot(self._free.pop(), self._free)

    def read(self, slot: Slot) -> Array:
        """A copy of a slot's content, [L, R, D]."""
        content: Array = tvm_runtime.array(self._view(slot))
        return content.reshape(self.shape)

    def write(self, slot: Slot, content: Array) -> None:
        """Fills a slot that nobody else holds."""
        tvm_runtime.fill(self._view(slot), content[None])

    def _view(self, slot: Slot) -> Any:
        shape = (1, *self.shape)
        return tvm_runtime.view(self.tensor, shape, slot.index * 4 * int(np.prod(shape)))

    def _grow(self) -> None:
        old, count = self.tensor, int(self.tensor.shape[0])
        # Not to twice as many: a state of RWKV-7 takes megabytes.
        more = count + max(_FIRST_SLOTS, count // 2)
        tensor = self._allocate(more)
        tvm_runtime.copy(old, tvm_runtime.view(tensor, tuple(old.shape), 0))
        self.tensor = tensor
        self._free += reversed(range(count, more))

    def _allocate(self, count: int) -> Any:
        return tvm_runtime.empty((count, *self.shape), "float32", self._device)
