"""Makes chosen blocks compute in float32 in a model that computes in float16."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import Op

from mlc_rwkv_world.compiler.passes.rewrite import Rewriter
from mlc_rwkv_world.model.parts import Part, read

_ASTYPE = Op.get("relax.astype")
_NARROW, _WIDE = "float16", "float32"


@tvm.transform.module_pass(opt_level=0, name="FP32Layers")
class FP32Layers:
    """Each part of a chosen block computes in float32, takes float32 and gives it.

    Weights keep their storage. A block's input is cast in front of it, and its output behind,
    unless what follows wants float32: so the residual between two chosen blocks is never rounded.

    Raises ValueError where a chosen block is not in the module.
    """

    def __init__(self, blocks: Iterable[int]) -> None:
        self.blocks = frozenset(blocks)

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if not self.blocks:
            return mod
        if missing := self.blocks - _blocks(mod):
            raise ValueError(f"fp32_layers: the model has no block {min(missing)}.")
        return _Widener(mod, self.blocks).run()


def _blocks(mod: IRModule) -> set[int]:
    """The numbers of the blocks that a module's parts belong to."""
    found: set[int] = set()

    def visit(expr: relax.Expr) -> None:
        part = read(expr)
        if part is not None and part.block is not None:
            found.add(part.block)

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, visit)
    return found


def _is_narrow(ty: Any) -> bool:
    return isinstance(ty, relax.TensorType) and str(ty.dtype) == _NARROW


def _widened(ty: Any) -> Any:
    return relax.TensorType(ty.shape, _WIDE) if _is_narrow(ty) else ty


class _Widener(Rewriter):
    def __init__(self, mod: IRModule, blocks: frozenset[int]) -> None:
        super().__init__(mod)
        self.blocks = blocks
        # The float32 forms of float16 variables, and of the tuples that hold such.
        self.wide: dict[relax.Var, relax.Expr] = {}
        self.narrow: dict[relax.Var, relax.Expr] = {}

    def binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        part = read(value)
        if part is not None and part.block in self.blocks:
            found = self.emit(self._wide(part).call())
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.wide:
            found = self.emit(relax.TupleGetItem(self.wide[value.tuple_value], value.index))
        elif self._reads_float32(value):
            return self.wide[value.args[0]]
        else:
            return super().binding(var, value)
        self.wide[var] = found
        return found

    def substituted(self, expr: Any) -> Any:
        in_wide = isinstance(expr, relax.Var) and expr in self.wide
        return self._outside(expr) if in_wide else super().substituted(expr)

    def _outside(self, var: relax.Var) -> relax.Expr:
        """What is outside a chosen block takes it as it was: rounded, where it was float16."""
        if not _is_narrow(var.ty):
            return self.wide[var]
        if var not in self.narrow:
            self.narrow[var] = self.emit(relax.op.astype(self.wide[var], _NARROW))
        return self.narrow[var]

    def _reads_float32(self, value: relax.Expr) -> bool:
        is_cast = isinstance(value, relax.Call) and value.op == _ASTYPE
        return is_cast and value.args[0] in self.wide and str(value.ty.dtype) == _WIDE

    def _wide(self, part: Part) -> Part:
        args = {
            role: tuple(map(self.substituted if role in part.weights else self._argument, exprs))
            for role, exprs in part.args.items()
        }
        outs = tuple(map(_widened, part.outs))
        return dataclasses.replace(
            part, args=args, attrs={**part.attrs, "compute": _WIDE}, outs=outs
        )

    def _argument(self, arg: relax.Expr) -> relax.Expr:
        if arg in self.wide:
            return self.wide[arg]
        given = self.substituted(arg)
        return self.emit(relax.op.astype(given, _WIDE)) if _is_narrow(arg.ty) else given
