"""Says which products with packed weights multiply bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from mlc_rwkv_world.kernels.arithmetic_cpu import INT8, inputs_of
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.models.operations import (
    BLOCK_BEGIN,
    BLOCK_END,
    LINEAR_PACKED,
    LINEAR_PACKED_INT8,
)
from mlc_rwkv_world.transforms.calls import packed_name, stored_in
from mlc_rwkv_world.tvm_names import name_of


@tvm.transform.module_pass(opt_level=0, name="ChooseArithmetic")
class ChooseArithmetic:
    """Products with quantized weights round their inputs to bytes where that was chosen.

    `arithmetic` is "int8" or "float32" by function, float32 for others; products inside the marks
    of the blocks `exact` stay float32 in every function.
    """

    def __init__(self, arithmetic: Mapping[str, str], exact: Iterable[int]) -> None:
        self.arithmetic = arithmetic
        self.exact = frozenset(exact)

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        changed = mod.clone()
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function) and self.arithmetic.get(name_of(gvar)) == INT8:
                changed[gvar] = _Chooser(mod, self.exact).visit_expr(func)
        return changed


@mutator
class _Chooser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, exact: frozenset[int]) -> None:
        super().__init__(mod)
        self.exact = exact
        self.block: int | None = None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        name = packed_name(call)
        if name == BLOCK_BEGIN:
            self.block = int(call.args[2].value)
        elif name == BLOCK_END:
            self.block = None
        elif name == LINEAR_PACKED and self.block not in self.exact:
            _, (stored,) = stored_in(call.args[1].fields)
            if inputs_of(stored, INT8) is Inputs.BYTES:
                return relax.call_dps_packed(LINEAR_PACKED_INT8, call.args[1], out_ty=call.ty)
        return call
