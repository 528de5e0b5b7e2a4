"""Compiles many kernels into one library, runs them, and measures how far off they are."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, tirx
from tvm.s_tir import dlight
from tvm.target import Target

from mlc_rwkv_world.compiler.library import lowering
from mlc_rwkv_world.compiler.passes.schedule_cpu import Elementwise
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_script import quick_parsing

Array = np.ndarray
Build = Callable[[Signature], tirx.PrimFunc]
# A builder, and the types of its tensor arguments and results: ("rows", 64, "float32").
Case = tuple[Build, Sequence[tuple[Any, ...]], Sequence[tuple[Any, ...]]]

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = "avx512 emulated"
# This CPU, and others that it can stand in for.
TARGETS = {"host": "auto"}
if X86:
    haswell = "llvm -mcpu=haswell"
    TARGETS |= {"haswell": haswell, "x86-64": "llvm -mcpu=x86-64", AVX512: haswell}


def signature(case: Case, target: Target) -> Signature:
    names: dict[str, tirx.Var] = {}

    def tensor(spec: tuple[Any, ...]) -> TensorType:
        *shape, dtype = spec
        return TensorType(tuple(map(extent, shape)), dtype)

    def extent(value: int | str) -> Any:
        if isinstance(value, int):
            return value
        return names.setdefault(value, tirx.Var(value, "int64"))

    _, args, outs = case
    return Signature([tensor(arg) for arg in args], [tensor(out) for out in outs], target)


def kernel(case: Case, target: Target, name: str) -> tirx.PrimFunc:
    """The kernel that a case builds for a target, as builds of libraries parse and name it."""
    with quick_parsing():
        return finished(case[0](signature(case, target))).with_attr("global_symbol", name)


def told(build: Build, *stored: Stored, inputs: Inputs = Inputs.FLOAT32) -> Build:
    """A builder that is told how the weights lie, and what inputs of products are."""
    return partial(_told, build, stored, inputs)


def _told(
    build: Build, stored: tuple[Stored, ...], inputs: Inputs, sig: Signature
) -> tirx.PrimFunc:
    return build(dataclasses.replace(sig, stored=stored, inputs=inputs))


def specs(stored: Stored, outer: int, inner: int) -> list[tuple[Any, ...]]:
    """The types of the tensors of a weight [outer, inner], for a case."""
    return [(*tensor.shape, tensor.dtype) for tensor in stored.tensors(outer, inner)]


class Kernels:
    """The kernels of some cases, compiled for one target and loaded from a linked library."""

    def __init__(self, cases: Mapping[str, Case], target: str, folder: Path) -> None:
        chosen = resolve("llvm" if target == "auto" else target)
        if missing := missing_features(chosen.cpu_features()):
            pytest.skip(f"this CPU lacks {', '.join(missing)}")
        self.target = chosen.target
        functions = {name: kernel(case, chosen.target, name) for name, case in cases.items()}
        with chosen.target:
            mod = dlight.ApplyDefaultSchedule(Elementwise())(IRModule(functions))
        library = folder / "kernels.so"
        with lowering(chosen.target):
            tvm.compile(mod, target=chosen.target).export_library(str(library))
        self._module = tvm.runtime.load_module(str(library))

    @property
    def multiplies_bytes(self) -> bool:
        """Whether the target has what products of bytes need."""
        return multiplies_bytes(self.target)

    def __call__(self, name: str, *args: Any, outs: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Runs a kernel on arrays and integers; results, (shape, dtype), start as NaN or -1."""
        tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in args]
        results = [tvm.runtime.tensor(poisoned(*out)) for out in outs]
        self._module[name](*tensors, *results)
        return [result.numpy() for result in results]

    def with_pool(
        self,
        name: str,
        args: Sequence[Array],
        pool: Array,
        slots: Array,
        layer: int,
        row: int,
        *,
        out: tuple[Any, ...],
    ) -> tuple[Array, Array]:
        """Runs a kernel that reads and writes a pool of states; its result, and the pool after."""
        changed, result = tvm.runtime.tensor(pool), tvm.runtime.tensor(poisoned(*out))
        tensors = [tvm.runtime.tensor(a) for a in args]
        place = [tvm.runtime.tensor(slots), layer, row]
        self._module[name](*tensors, changed, *place, result)
        return result.numpy(), changed.numpy()

    def in_place(self, name: str, array: Array, *args: Any) -> Array:
        """Runs a kernel that writes into its first argument; that argument afterwards."""
        tensor = tvm.runtime.tensor(array)
        rest = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in args]
        self._module[name](tensor, *rest)
        return np.asarray(tensor.numpy())


def poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    """What no kernel may leave in its result."""
    return np.full(shape, np.nan if dtype.startswith("float") else -1).astype(dtype)


def error_ratio(actual: Array, exact: Array) -> float:
    """Root mean square of the error over that of the exact values; NaN where any value is."""
    error = actual.astype(np.float64) - exact
    return float(np.sqrt(np.square(error).mean() / np.square(exact).mean()))
