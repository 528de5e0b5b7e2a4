"""What kernels that go head by head have in common, on every target, in float32.

A CPU takes the heads of some tokens in parallel, on a GPU a thread has a head. Sums go over 16
lanes side by side on a CPU, and channel by channel on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.script import tirx as T

from mlc_rwkv_world.kernels.signature import STACK, Signature, parallel_if_worth


class Heads:
    """The loops over tokens and heads for one target, and how many channels go side by side."""

    def __init__(self, sig: Signature, size: int) -> None:
        self.width, self.size = sig.args[0].static(1), size
        self.heads = self.width // size
        known = sig.args[0].shape[0]
        if sig.on_cpu:
            self.tokens: Any = parallel_if_worth(
                known * self.width * 8 if isinstance(known, int) else None
            )
            self.each: Any = T.serial
            self.lanes = next(n for n in (16, 8, 4, 2, 1) if size % n == 0)
            self.scope = STACK
        else:
            self.tokens = partial(T.thread_binding, thread="blockIdx.x")
            self.each = partial(T.thread_binding, thread="threadIdx.x")
            self.lanes, self.scope = 1, "local"
        self.steps = size // self.lanes

    def moments(self, eps: float) -> Callable[..., None]:
        """`moments(y, t, base, part, stat)`, inlined: a head's mean to stat[0], and the inverse of
        its deviation to stat[1]. `base` is its first channel, `part` room for `lanes` sums.
        """
        lanes, steps, inverse = self.lanes, self.steps, 1.0 / self.size

        @T.inline
        def moments(y: Any, t: Any, base: Any, part: Any, stat: Any) -> None:
            for i in T.vectorized(lanes):
                part[i] = T.float32(0)
            for n in range(T.int64(steps)):
                for i in T.vectorized(lanes):
                    part[i] = part[i] + y[t, base + n * T.int64(lanes) + i]
            stat[0] = T.float32(0)
            for i in range(lanes):
                stat[0] = stat[0] + part[i]
            stat[0] = stat[0] * T.float32(inverse)
            for i in T.vectorized(lanes):
                part[i] = T.float32(0)
            for n in range(T.int64(steps)):
                for i in T.vectorized(lanes):
                    c = T.meta_var(base + n * T.int64(lanes) + i)
                    part[i] = part[i] + (y[t, c] - stat[0]) * (y[t, c] - stat[0])
            stat[1] = T.float32(0)
            for i in range(lanes):
                stat[1] = stat[1] + part[i]
            stat[1] = T.float32(1) / T.sqrt(stat[1] * T.float32(inverse) + T.float32(eps))

        chosen: Callable[..., None] = moments
        return chosen
