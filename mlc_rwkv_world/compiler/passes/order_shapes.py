"""Makes what VMShapeLower leaves the same in every process, and so the library, byte for byte."""

from __future__ import annotations

import tvm
from tvm import IRModule, tirx

from mlc_rwkv_world.tvm_names import name_of

# VMShapeLower's functions, which compute extents from others.
_COMPUTES_SHAPES = "shape_func"


@tvm.transform.module_pass(opt_level=0, name="OrderShapes")
class OrderShapes:
    """Sorts the stores of each function that computes extents by where they go.

    VMShapeLower emits them in the order of a table that is hashed by address, and so makes each of
    what was there before the function.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        changed = mod.clone()
        for gvar, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and name_of(gvar).startswith(_COMPUTES_SHAPES):
                changed[gvar] = _sorted(func)
        return changed


def _sorted(func: tirx.PrimFunc) -> tirx.PrimFunc:
    stores = list(func.body.seq) if isinstance(func.body, tirx.SeqStmt) else []
    if not stores or not all(isinstance(store, tirx.BufferStore) for store in stores):
        return func
    places = [int(store.indices[0]) for store in stores]
    if len(set(places)) < len(places):
        return func
    return func.with_body(tirx.SeqStmt([stores[places.index(place)] for place in sorted(places)]))
