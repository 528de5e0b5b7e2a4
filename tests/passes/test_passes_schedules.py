"""The CPU's schedule for what fusion leaves gives what the unscheduled kernel gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, te, tirx
from tvm.s_tir import dlight

from mlc_rwkv_world.compiler.passes import schedule_gpu
from mlc_rwkv_world.compiler.passes.schedule_cpu import Elementwise
from mlc_rwkv_world.compiler.target import resolve

pytestmark = pytest.mark.slow


def _chain(rows: Any, width: int) -> tirx.PrimFunc:
    """sigmoid(x) * float16(y + x), as fusion leaves it: a chain of elementwise stages."""
    x = te.placeholder((rows, width), "float32", "x")
    y = te.placeholder((width,), "float32", "y")
    total = te.compute(x.shape, lambda i, j: (x[i, j] + y[j]).astype("float16"), "total")
    gate = te.compute(x.shape, lambda i, j: tirx.sigmoid(x[i, j]), "gate")
    out = te.compute(x.shape, lambda i, j: gate[i, j] * total[i, j].astype("float32"), "out")
    return te.create_prim_func([x, y, out])


def _gather(rows: Any, width: int) -> tirx.PrimFunc:
    x = te.placeholder((40, width), "float32", "x")
    y = te.placeholder((rows,), "int32", "y")
    out = te.compute((y.shape[0], width), lambda i, j: x[y[i], j], "out")
    return te.create_prim_func([x, y, out])


def _sum(rows: Any, width: int) -> tirx.PrimFunc:
    """No elementwise kernel: the rule must leave it alone."""
    x = te.placeholder((rows, width), "float32", "x")
    y = te.placeholder((width,), "float32", "y")
    j = te.reduce_axis((0, width), "j")
    out = te.compute((x.shape[0],), lambda i: te.sum(x[i, j] * y[j], axis=j), "out")
    return te.create_prim_func([x, y, out])


def _dynamic() -> tirx.Var:
    return tirx.Var("rows", "int64")


Make = Callable[[Any, int], tirx.PrimFunc]
# What makes a kernel, its rows if they are known when compiling, the rows to run, and the width.
CASES: dict[str, tuple[Make, int | None, int, int]] = {
    "chain_one_row": (_chain, 1, 1, 64),
    "chain_odd": (_chain, 3, 3, 50),
    "chain_large": (_chain, 1024, 1024, 64),
    "chain_dynamic": (_chain, None, 37, 64),
    "chain_dynamic_odd": (_chain, None, 5, 7),
    "gather_dynamic": (_gather, None, 9, 64),
    "sum_dynamic": (_sum, None, 6, 50),
}


@pytest.fixture(scope="module")
def target() -> tvm.target.Target:
    return resolve("llvm").target


@pytest.fixture(scope="module")
def plain() -> IRModule:
    return IRModule(
        {
            name: make(rows or _dynamic(), width).with_attr("global_symbol", name)
            for name, (make, rows, _, width) in CASES.items()
        }
    )


@pytest.fixture(scope="module")
def scheduled(plain: IRModule, target: tvm.target.Target) -> IRModule:
    with target:
        return dlight.ApplyDefaultSchedule(Elementwise())(plain)


@pytest.fixture(scope="module")
def libraries(
    plain: IRModule,
    scheduled: IRModule,
    target: tvm.target.Target,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    folder = tmp_path_factory.mktemp("schedules")

    def load(mod: IRModule, path: Path) -> Any:
        tvm.compile(mod, target=target).export_library(str(path))
        return tvm.runtime.load_module(str(path))

    return [load(plain, folder / "plain.so"), load(scheduled, folder / "scheduled.so")]


@pytest.mark.parametrize("name", CASES)
def test_same_result(libraries: list[Any], name: str) -> None:
    _, _, rows, width = CASES[name]
    rng = np.random.default_rng(0)
    if name.startswith("gather"):
        args = [rng.standard_normal((40, width), np.float32), rng.integers(0, 40, rows, np.int32)]
    else:
        args = [rng.standard_normal(s, np.float32) for s in ((rows, width), width)]
    shape = (rows,) if name.startswith("sum") else (rows, width)
    results = []
    for library in libraries:
        out = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
        library[name](*map(tvm.runtime.tensor, args), out)
        results.append(out.numpy())
    assert np.isfinite(results[0]).all()
    np.testing.assert_allclose(results[1], results[0], rtol=3e-7, atol=1e-6)


def test_loops_are_cut_as_they_should_be(scheduled: IRModule) -> None:
    def loops(name: str) -> str:
        return str(scheduled[name].script())

    assert "T.vectorized(16)" in loops("chain_one_row")
    assert "T.parallel" not in loops("chain_one_row")
    assert "T.vectorized" not in loops("chain_odd")
    assert "T.parallel" not in loops("chain_odd")
    for name in ("chain_large", "chain_dynamic"):
        assert "T.vectorized(16)" in loops(name)
        assert "T.parallel" in loops(name)
    for name in CASES:
        is_sum = name.startswith("sum")
        # Nothing but the result is written.
        assert "T.alloc_buffer" not in loops(name) or is_sum
        assert bool(scheduled[name].attrs.get("tirx.is_scheduled")) != is_sum


def test_products_for_a_gpu_are_scheduled(target: tvm.target.Target) -> None:
    cuda = resolve("cuda -arch=sm_90").target
    mod = IRModule({"sum": _sum(_dynamic(), 256), "chain": _chain(_dynamic(), 64)})
    with cuda:
        mod = dlight.ApplyDefaultSchedule(*schedule_gpu.rules())(mod)
    for name in ("sum", "chain"):
        assert "threadIdx.x" in mod[name].script()
