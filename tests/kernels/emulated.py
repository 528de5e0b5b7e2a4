"""Runs CUDA kernels on the emulated GPU; imported in a process of its own too."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from compiling import Array, Case, kernel, poisoned
from tvm import IRModule
from tvm.s_tir import dlight

from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.target import resolve

if TYPE_CHECKING:
    from support.cuda_emulation import Fault

ARCH = "cuda -arch=sm_90"
# Inputs, and shape and dtype of each result.
Call = tuple[Sequence[Any], Sequence[tuple[tuple[int, ...], str]]]


def build(cases: Mapping[str, Case], target: str = ARCH, general: bool = False) -> Any:
    """The kernels of some cases, compiled for CUDA; `general` ones have dlight's schedules."""
    chosen = resolve(target).target
    functions = {name: kernel(case, chosen, name) for name, case in cases.items()}
    for name, func in functions.items():
        assert bool(func.attrs.get("tirx.is_scheduled")) is not general, name
    mod = IRModule(functions)
    with chosen:
        if general:
            mod = dlight.ApplyDefaultSchedule(*schedule_gpu.rules())(mod)
        return tvm.compile(mod, target=chosen)


def compute(
    cases: Mapping[str, Case], calls: Sequence[tuple[str, Call]], general: bool = False
) -> list[list[Array]]:
    """What each call leaves in its results, which start as NaN or -1, and in its array inputs."""
    module = build(cases, ARCH, general)
    return [_called(module[name], *call) for name, call in calls]


def compute_in_orders(
    cases: Mapping[str, Case], calls: Sequence[tuple[str, Call]], orders: Sequence[int]
) -> list[list[Array]]:
    """As `compute`; every one of so many orders of threads and blocks must leave the same bits."""
    from support import cuda_emulation

    module = build(cases)
    answers = []
    for (name, call), count in zip(calls, orders, strict=True):
        cuda_emulation.seed(0)
        answers.append(_called(module[name], *call))
        for order in range(1, count):
            cuda_emulation.seed(order)
            for got, first in zip(_called(module[name], *call), answers[-1], strict=True):
                np.testing.assert_array_equal(got, first, f"{name}, order {order}")
    return answers


def _called(
    function: Any, inputs: Sequence[Any], outs: Sequence[tuple[tuple[int, ...], str]]
) -> list[Array]:
    device = tvm.cuda(0)
    tensors = [tvm.runtime.tensor(a, device) if isinstance(a, np.ndarray) else a for a in inputs]
    results = [tvm.runtime.tensor(poisoned(*out), device) for out in outs]
    function(*tensors, *results)
    arrays = [t.numpy() for t in tensors if not isinstance(t, int)]
    return [*(result.numpy() for result in results), *arrays]


def planted(
    cases: Mapping[str, Case], calls: Mapping[str, Call], faults: Sequence[tuple[Fault, str]]
) -> list[str]:
    """What ends the process of each fault's kernel; or "other values", or "nothing"."""
    right = compute(cases, list(calls.items()))
    expected = dict(zip(calls, right, strict=True))
    said = []
    for fault, owner in faults:
        name = owner.partition("_kernel")[0]
        with tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if not child:
                os.dup2(errors.fileno(), 2)
                _try(cases[name], (name, calls[name]), expected[name], fault)
            _, status = os.waitpid(child, 0)
            errors.seek(0)
            said.append(errors.read() or f"ended with {status} and no word")
    return said


def _try(case: Case, call: tuple[str, Call], expected: list[Array], fault: Fault) -> None:
    """Says on stderr what came of a fault, and ends the process."""
    from support import cuda_emulation

    try:
        cuda_emulation.faults.append(fault)
        (found,) = compute({call[0]: case}, [call])
        pairs = zip(found, expected, strict=True)
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        sys.stderr.write("nothing" if same else "other values")
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(0)
