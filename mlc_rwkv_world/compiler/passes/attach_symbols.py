"""Gives functions the names under which a library has them."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import GlobalVar
from tvm.relax.expr_functor import PyExprMutator, mutator

from mlc_rwkv_world.tvm_names import name_of

_PREFIX = "system_lib_prefix"


@tvm.transform.module_pass(opt_level=0, name="AttachSymbols")
class AttachSymbols:
    """Every function's name becomes its symbol; kernels of a system library have its prefix.

    `relax.transform.AttachGlobalSymbol` would put the prefix there too, but rewrites the kernels'
    bodies for it and fails on pointers in them.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        attach = relax.transform.AttachGlobalSymbol()
        prefix = (mod.attrs or {}).get(_PREFIX)
        if prefix is None:
            return attach(mod)
        return attach(_prefixed(mod, str(prefix)).without_attr(_PREFIX)).with_attr(_PREFIX, prefix)


def _prefixed(mod: IRModule, prefix: str) -> IRModule:
    kernels = {
        gvar: GlobalVar(prefix + name_of(gvar))
        for gvar, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    for old, new in kernels.items():
        relax.expr._update_type(new, old.ty)
    renamer = _Renamer(kernels)
    functions = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            functions[gvar] = renamer.visit_expr(func)
        else:
            functions[kernels.get(gvar, gvar)] = func
    return IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)


@mutator
class _Renamer(PyExprMutator):  # type: ignore[misc]
    def __init__(self, names: dict[GlobalVar, GlobalVar]) -> None:
        super().__init__()
        self.names = names

    def visit_global_var_(self, gvar: GlobalVar) -> GlobalVar:
        return self.names.get(gvar, gvar)
