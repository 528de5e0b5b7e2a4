"""Kernels that do nothing but read memory, or add and multiply, to measure what a CPU can do."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.signature import STACK, Signature

# Sums side by side, enough to hide the latency of an addition.
_CHAINS = 10


def read(sig: Signature) -> tirx.PrimFunc:
    """(words [tasks, n, 64]) -> their exclusive or, [tasks, 64]: each task reads its own row."""
    tasks, steps, width = map(int, sig.args[0].shape)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((tasks, steps, width), "uint32"), out: T.Buffer((tasks, width), "uint32")
    ) -> None:
        for task in T.parallel(tasks):
            total = T.alloc_buffer((width,), "uint32", scope=STACK)
            for i in T.vectorized(width):
                total[i] = T.uint32(0)
            for step in range(steps):
                for i in T.vectorized(width):
                    total[i] = total[i] ^ x[task, step, i]
            for i in T.vectorized(width):
                out[task, i] = total[i]

    return kernel


def multiply_add(sig: Signature, steps: int) -> tirx.PrimFunc:
    """(factor [1]) -> [tasks, lanes]: `steps` times ten vector multiply-adds in each task."""
    tasks, width = sig.outs[0].static(0), lanes(sig.target)

    @T.prim_func(s_tir=True)
    def kernel(factor: T.Buffer((1,), "float32"), out: T.Buffer((tasks, width), "float32")) -> None:
        for task in T.parallel(tasks):
            total = T.alloc_buffer((_CHAINS * width,), "float32", scope=STACK)
            for c in T.unroll(_CHAINS):
                total[T.Ramp(c * width, 1, width)] = T.Broadcast(T.cast(c, "float32"), width)
            for _step in range(steps):
                for c in T.unroll(_CHAINS):
                    total[T.Ramp(c * width, 1, width)] = total[
                        T.Ramp(c * width, 1, width)
                    ] * T.Broadcast(factor[0], width) + T.Broadcast(factor[0], width)
            out[task, T.Ramp(0, 1, width)] = total[T.Ramp(0, 1, width)]
            for c in T.unroll(_CHAINS - 1):
                out[task, T.Ramp(0, 1, width)] = (
                    out[task, T.Ramp(0, 1, width)] + total[T.Ramp((c + 1) * width, 1, width)]
                )

    return kernel


def operations(steps: int, tasks: int, sig: Signature) -> int:
    """How many additions and multiplications `multiply_add` does."""
    return 2 * steps * tasks * _CHAINS * lanes(sig.target)
