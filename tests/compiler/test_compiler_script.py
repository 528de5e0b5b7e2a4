"""TVMScript that is parsed quickly is what TVM makes of it by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import tvm
from tvm import tirx
from tvm.script import ir as I
from tvm.script import tirx as T

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


@pytest.mark.parametrize(
    "make", [lambda: _function(3), _nested, _class], ids=["function", "nested", "class"]
)
def test_the_same_each_time(make: Callable[[], object]) -> None:
    found: dict[str, Any] = {}
    for name, parsing in PARSING.items():
        with parsing():
            make()
            found[name] = make()
    tvm.ir.assert_structural_equal(found["quick"], found["plain"])
    assert "x[" in found["quick"].script()


def test_macros_follow_what_they_are_called_with() -> None:
    with quick_parsing():
        narrow, wide = _function(3), _function(5)
    assert narrow.script().count("range(3)") == wide.script().count("range(5)") == 2


def test_errors_name_the_same_place() -> None:
    said = []
    for parsing in PARSING.values():
        with parsing(), pytest.raises(Exception, match="unknown") as info:

            @T.prim_func(s_tir=True)
            def func(x: T.Buffer((4,), "float32")) -> None:
                x[0] = unknown  # type: ignore[name-defined]  # noqa: F821

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
    from tvm.script.parser.core import doc, parser
    from tvm.tirx.script.parser import entry

    def names() -> tuple[object, ...]:
        return parser.inspect, entry.inspect, doc.parse

    before = names()
    with pytest.raises(ZeroDivisionError), quick_parsing():
        assert all(now is not then for now, then in zip(names(), before, strict=True))
        raise ZeroDivisionError
    assert names() == before
