"""What this machine's CPU can do at most, as measured now: bytes read and float32 operations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm import IRModule

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu import limits as limits_cpu
from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.signature import Signature, TensorType

# Far more than a last-level cache holds.
_READ_BYTES = 1 << 29
_STEPS = 4_000_000
_WORDS = 64
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes read and float32 operations per second."""

    read: float
    float32: float


def measure(threads: int) -> Limits:
    """The best of a few rounds on `threads` threads, which TVM has to be set to already."""
    target = resolve("llvm").target
    steps = _READ_BYTES // 4 // _WORDS // threads
    words = TensorType((threads, steps, _WORDS), "uint32")
    read_sig = Signature([words], [TensorType((threads, _WORDS), "uint32")], target)
    out = TensorType((threads, lanes(target)), "float32")
    add_sig = Signature([TensorType((1,), "float32")], [out], target)
    functions = {
        "read": limits_cpu.read(read_sig),
        "multiply_add": limits_cpu.multiply_add(add_sig, _STEPS),
    }
    named = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    module = tvm.compile(IRModule(named), target=target)
    memory = tvm.runtime.tensor(np.ones(words.shape, np.uint32))
    ors = tvm.runtime.tensor(np.zeros((threads, _WORDS), np.uint32))
    factor = tvm.runtime.tensor(np.full(1, 0.5, np.float32))
    sums = tvm.runtime.tensor(np.zeros(out.shape, np.float32))
    seconds = _best(lambda: module["read"](memory, ors))
    adding = _best(lambda: module["multiply_add"](factor, sums))
    operations = limits_cpu.operations(_STEPS, threads, add_sig)
    return Limits(threads * steps * _WORDS * 4 / seconds, operations / adding)


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
