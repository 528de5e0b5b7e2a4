"""Rebuilding a module's Relax functions, binding by binding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import IRModule, relax, tirx

from mlc_rwkv_world.tvm_names import name_of


class Rewriter:
    """Emits every binding again, or what `binding` emits instead.

    While it runs, `relax.BlockBuilder.current()` is the builder of the new function, so that
    operators of `nn` can be used. Functions consist of blocks of dataflow, as exports do.
    """

    def __init__(self, mod: IRModule) -> None:
        self._mod = mod
        kernels = {g: f for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
        self.builder = relax.BlockBuilder(IRModule(kernels, global_infos=mod.global_infos))
        self._values: dict[relax.Var, relax.Expr] = {}

    def run(self) -> IRModule:
        """The module with its functions rebuilt."""
        for gvar, func in self._mod.functions_items():
            if isinstance(func, relax.Function):
                self._function(name_of(gvar), func)
        mod = self.builder.get()
        for gvar, func in self._mod.functions_items():
            if isinstance(func, relax.Function) and func.attrs:
                name = name_of(gvar)
                mod[name] = mod[name].with_attrs(dict(func.attrs.items()))
        return mod.with_attrs(dict(self._mod.attrs.items())) if self._mod.attrs else mod

    def parameters(self, name: str, func: relax.Function) -> Sequence[relax.Var]:
        """The parameters of the new function, and a place to prepare for it."""
        return list(func.params)

    def binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        """Emits what a variable is bound to; the expression that stands for it from here on."""
        return self.emit(self.substituted(value), name_of(var))

    def emit(self, value: relax.Expr, name: str = "") -> relax.Var:
        return self.builder.emit(value, name_hint=name)

    def replace(self, var: relax.Var, value: relax.Expr) -> None:
        """Says what stands for a variable from here on."""
        self._values[var] = value

    def substituted(self, expr: Any) -> Any:
        """An expression of the old function in terms of the new one."""
        if isinstance(expr, relax.Var):
            return self._values.get(expr, expr)
        if isinstance(expr, relax.Call):
            args = [self.substituted(arg) for arg in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.substituted(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.substituted(expr.tuple_value), expr.index)
        return expr

    def _function(self, name: str, func: relax.Function) -> None:
        self._values = {}
        params = self.parameters(name, func)
        for old, new in zip(func.params, params, strict=True):
            if not new.same_as(old):
                self.replace(old, new)
        with self.builder.function(name, params, pure=bool(func.is_pure)):
            for block in func.body.blocks:
                with self.builder.dataflow():
                    for binding in block.bindings:
                        self.replace(binding.var, self._bound(binding))
            self.builder.emit_func_output(self.substituted(func.body.body))

    def _bound(self, binding: relax.VarBinding) -> relax.Expr:
        value = self.binding(binding.var, binding.value)
        if isinstance(binding.var, relax.DataflowVar):
            return value
        return self.builder.emit_output(value, name_hint=name_of(binding.var))
