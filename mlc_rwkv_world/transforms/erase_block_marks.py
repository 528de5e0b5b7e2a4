"""Removes the marks around blocks, once no pass needs them any more."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END
from mlc_rwkv_world.transforms.calls import packed_name


@tvm.transform.module_pass(opt_level=0, name="EraseBlockMarks")
class EraseBlockMarks:
    """Replaces each mark by the value that it marks."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        erased = mod.clone()
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function):
                erased[gvar] = _Eraser(erased).visit_expr(func)
        return erased


@mutator
class _Eraser(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if packed_name(call) in (BLOCK_BEGIN, BLOCK_END):
            return call.args[1]
        return call
