"""Functions that compute extents look the same however they were made."""

from __future__ import annotations

import tvm_ffi
from support.modules import applied
from tvm import IRModule, tirx
from tvm.script import tirx as T

from mlc_rwkv_world.compiler.passes.order_shapes import OrderShapes


@T.prim_func
def _forwards(places: T.Buffer((4,), "int64")) -> None:
    places[1] = places[0] * T.int64(2)
    places[3] = places[0] * T.int64(8)


@T.prim_func
def _backwards(places: T.Buffer((4,), "int64")) -> None:
    places[3] = places[0] * T.int64(8)
    places[1] = places[0] * T.int64(2)


@T.prim_func
def _twice(places: T.Buffer((4,), "int64")) -> None:
    places[3] = places[0] * T.int64(8)
    places[3] = places[0] * T.int64(2)


def _ordered(name: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
    return applied(OrderShapes(), IRModule({name: func}))[name]


def test_stores_are_sorted() -> None:
    assert not tvm_ffi.structural_equal(_backwards.body, _forwards.body, map_free_vars=True)
    found = _ordered("shape_func1", _backwards)
    assert tvm_ffi.structural_equal(found.body, _forwards.body, map_free_vars=True)
    assert tvm_ffi.structural_equal(_ordered("shape_func", _forwards), _forwards)


def test_others_stay() -> None:
    assert tvm_ffi.structural_equal(_ordered("shape_func", _twice), _twice)
    assert tvm_ffi.structural_equal(_ordered("kernel", _backwards), _backwards)
