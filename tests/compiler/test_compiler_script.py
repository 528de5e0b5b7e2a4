"""TVMScript that is parsed quickly is what TVM makes of it by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import tvm
from support.modules import applied, chosen, small_config, small_module
from tvm import tirx
from tvm.script import ir as I
from tvm.script import tirx as T
from tvm.script.parser.core import diagnostics, doc, evaluator, parser, utils
from tvm.tirx.script.parser import entry

from mlc_rwkv_world.compiler.arithmetic import by_function
from mlc_rwkv_world.compiler.arithmetic import resolve as resolve_arithmetic
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.passes import kernel_table
from mlc_rwkv_world.compiler.passes.pack_weights import PackWeights
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.tvm_script import quick_parsing

PARSING: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "quick": quick_parsing,
    "plain": nullcontext,
}


def _function(width: int) -> tirx.PrimFunc:
    """Annotations that only the enclosing call knows, and a macro that is used twice."""

    @T.inline
    def fill(x, out, factor):  # type: ignore[no-untyped-def]
        for i in T.serial(width):
            out[i] = out[i] + x[i] * T.float32(factor)

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((width,), "float32"), out: T.Buffer((width,), "float32")) -> None:
        fill(x, out, 2)
        fill(x, out, 3)

    return func


def _nested() -> tirx.PrimFunc:
    """A macro inside the function, whose decorator TVM takes off while it parses."""

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        @T.inline
        def double(i):  # type: ignore[no-untyped-def]
            x[i] = x[i] * T.float32(2)

        double(0)
        double(3)

    return func


def _class() -> tvm.IRModule:
    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def copy(x: T.Buffer((4,), "float32"), out: T.Buffer((4,), "float32")) -> None:
            for i in T.serial(4):
                out[i] = x[i]

    return Module


def _expressions() -> tirx.PrimFunc:
    """Every kind of expression, as an operand of others."""
    shape, scales = (2, 8), [2, 3]

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((*shape, 4), "float32"), var_out: T.handle) -> None:
        rows = T.int64()
        out = T.match_buffer(var_out, (rows, *shape), "float32", scope="global")
        for i, j in T.grid(*shape):
            y = T.alloc_buffer((4,), "float32")
            y[T.Ramp(0, 1, 4)] = x[i, j, T.Ramp(0, 1, 4)] * T.Broadcast(T.float32(scales[-1]), 4)
            if not (i == 1 and j < 3) or -j + i >= 4:
                out[i, i, j] = T.if_then_else(j + i > 1, y[i % 2], T.max(y[j % 4], y[0]))
            elif 0 <= j < 2:
                out[i, 0, j] = y[len(scales) if shape[0] > 1 else 0] + T.float32(sum(scales[0:2]))
            out[0, i, j] = T.cast([i, j][1] // 2 << 1, "float32")

    return func


@pytest.mark.parametrize(
    "make",
    [lambda: _function(3), _nested, _class, _expressions],
    ids=["function", "nested", "class", "expressions"],
)
def test_the_same_each_time(make: Callable[[], object]) -> None:
    found: dict[str, Any] = {}
    for name, parsing in PARSING.items():
        with parsing():
            make()
            found[name] = make()
    tvm.ir.assert_structural_equal(found["quick"], found["plain"])
    assert "x[" in found["quick"].script()


@contextmanager
def _with_tvms_expressions() -> Iterator[None]:
    with quick_parsing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "eval_expr", evaluator.eval_expr)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("target", ["llvm", "cuda -arch=sm_90"])
def test_all_kernels_of_a_model_are_the_same(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TVM's own evaluation of expressions, and nothing kept from one parse for the other."""
    monkeypatch.setattr(kernel_table, "_built", kernel_table._built.__wrapped__)
    wanted, mod = (
        resolve(target),
        small_module("q4f16_1", "float32", stock=False, num_hidden_layers=1),
    )
    if wanted.kind == "llvm":
        fmt = format_named("q4f16_1")
        names = [spec.name for spec in parameters(small_config(num_hidden_layers=1), fmt)]
        arithmetic = by_function(resolve_arithmetic("auto", wanted, fmt, "float32"))
        mod = applied(PackWeights(wanted.target, names, arithmetic), mod)
    found = chosen(mod, wanted.target)
    with_tvms = chosen(mod, wanted.target, parsing=_with_tvms_expressions)
    tvm.ir.assert_structural_equal(found, with_tvms)


def test_macros_follow_what_they_are_called_with() -> None:
    with quick_parsing():
        narrow, wide = _function(3), _function(5)
    assert narrow.script().count("range(3)") == wide.script().count("range(5)") == 2


def _unknown() -> None:
    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        x[0] = T.max(x[1], unknown)  # type: ignore[name-defined]  # noqa: F821


def _no_attribute() -> None:
    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        x[0] = x[1] + T.unknown(x[2])


def _refused_call() -> None:
    unknown = {"factor": 2}

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        x[0] = x[1] + T.max(x[2], unknown)


def _refused_operator() -> None:
    unknown = {"factor": 2}

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        x[0] = T.max(x[1], -unknown)  # type: ignore[operator]


def _refused_item() -> None:
    unknown = {"factor": 2}

    @T.prim_func(s_tir=True)
    def func(x: T.Buffer((4,), "float32")) -> None:
        x[0] = T.float32(unknown["unknown"])


@pytest.mark.parametrize(
    "make", [_unknown, _no_attribute, _refused_call, _refused_operator, _refused_item]
)
def test_errors_name_the_same_place(make: Callable[[], None]) -> None:
    said = []
    for parsing in PARSING.values():
        with parsing(), pytest.raises(tvm.error.DiagnosticError, match="unknown") as info:
            make()
        said.append(str(info.value))
    assert said[0] == said[1] and f"{__file__}:" in said[0]


def test_sources_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    original = inspect.getframeinfo

    def getframeinfo(*args: Any, **options: Any) -> inspect.Traceback:
        looked.append(args)
        return original(*args, **options)

    monkeypatch.setattr(inspect, "getframeinfo", getframeinfo)
    with quick_parsing():
        _function(3)
    # For the function, and for its decorator, which TVM evaluates again.
    assert len(looked) == 2
    _function(3)
    assert len(looked) > 20


def test_tvm_is_left_as_it_was() -> None:
    def names() -> tuple[object, ...]:
        return (
            *(parser.inspect, entry.inspect, doc.parse, parser.eval_expr),
            *(diagnostics.getsourcelines, utils._collect_annotation_names),
            *(parser.Parser.with_source_span, parser.Parser.annotate_current_source_span),
        )

    before = names()
    with pytest.raises(ZeroDivisionError), quick_parsing():
        assert all(now is not then for now, then in zip(names(), before, strict=True))
        raise ZeroDivisionError
    assert names() == before
