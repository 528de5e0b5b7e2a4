"""Runs CUDA kernels on the emulated GPU; imported in a process of its own too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from compiling import Array, Case, kernel, poisoned
from tvm import IRModule
from tvm.s_tir import dlight

from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.target import resolve

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
    module, device = build(cases, ARCH, general), tvm.cuda(0)
    answers = []
    for name, (inputs, outs) in calls:
        tensors = [
            tvm.runtime.tensor(a, device) if isinstance(a, np.ndarray) else a for a in inputs
        ]
        results = [tvm.runtime.tensor(poisoned(*out), device) for out in outs]
        module[name](*tensors, *results)
        arrays = [t.numpy() for t in tensors if not isinstance(t, int)]
        answers.append([*(result.numpy() for result in results), *arrays])
    return answers
