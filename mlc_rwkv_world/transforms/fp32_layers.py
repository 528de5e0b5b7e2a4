"""Makes chosen blocks compute in float32 in a model that computes in float16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator

from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END
from mlc_rwkv_world.transforms.calls import packed_name
from mlc_rwkv_world.tvm_names import constant_value

_ASTYPE = Op.get("relax.astype")
_MATMUL = Op.get("relax.matmul")
_DPS_PACKED = Op.get("relax.call_dps_packed")
_PURE_PACKED = Op.get("relax.call_pure_packed")
_NARROW, _WIDE = "float16", "float32"


@tvm.transform.module_pass(opt_level=0, name="FP32Layers")
class FP32Layers:
    """Each operation between the marks of a chosen block takes and gives float32.

    Parameters keep their storage: what reads them, a cast or a `dequantize`, gives float32. A
    block's input is cast in front of its first mark, and its output behind the second, unless
    what follows wants float32: so the residual between two chosen blocks is never rounded.

    Raises ValueError where a chosen block is not in the module, or holds an operation whose
    result cannot be made float32.
    """

    def __init__(self, blocks: Iterable[int]) -> None:
        self.blocks = frozenset(blocks)

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        present = {
            gvar: _marked(func)
            for gvar, func in mod.functions_items()
            if isinstance(func, relax.Function)
        }
        if missing := self.blocks.difference(*present.values()):
            raise ValueError(f"fp32_layers: the model has no block {min(missing)}.")
        changed = mod.clone()
        for gvar, found in present.items():
            if self.blocks & found:
                changed[gvar] = _Widener(mod, self.blocks).visit_expr(mod[gvar])
        return changed


def _marked(func: relax.Function) -> set[int]:
    """The numbers of the blocks that a function marks."""
    found: set[int] = set()

    def visit(expr: relax.Expr) -> None:
        if packed_name(expr) == BLOCK_BEGIN:
            found.add(_number(expr))

    relax.analysis.post_order_visit(func, visit)
    return found


def _number(mark: relax.Call) -> int:
    return int(mark.args[2].value)


def _is_narrow(ty: Any) -> bool:
    return isinstance(ty, relax.TensorType) and str(ty.dtype) == _NARROW


def _widened(ty: Any) -> Any:
    """The type with float32 for each float16."""
    if isinstance(ty, relax.TupleType):
        return relax.TupleType([_widened(field) for field in ty.fields])
    return relax.TensorType(ty.shape, _WIDE) if _is_narrow(ty) else ty


def _holds_narrow(ty: Any) -> bool:
    if isinstance(ty, relax.TupleType):
        return any(map(_holds_narrow, ty.fields))
    return _is_narrow(ty)


@mutator
class _Widener(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, blocks: frozenset[int]) -> None:
        super().__init__(mod)
        self.blocks = blocks
        # The chosen block whose operations come, and the float32 forms of float16 variables.
        self.block: int | None = None
        self.wide: dict[relax.Var, relax.Expr] = {}
        self.narrow: dict[relax.Var, relax.Expr] = {}
        self.replaced: dict[relax.Var, relax.Expr] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value, name = binding.value, packed_name(binding.value)
        if name == BLOCK_BEGIN and _number(value) in self.blocks:
            self.block = _number(value)
        if self.block is not None:
            self._bind(binding.var, self._widen(value))
        elif self._reads_wide_as_float32(value):
            self._bind(binding.var, self.wide[value.args[0]])
        else:
            super().visit_var_binding_(binding)
        if name == BLOCK_END and _number(value) == self.block:
            self.block = None

    def visit_dataflow_var_(self, var: relax.Var) -> relax.Expr:
        outside = self._outside(var)
        return super().visit_dataflow_var_(var) if outside is None else outside

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        outside = self._outside(var)
        return super().visit_var_(var) if outside is None else outside

    def _outside(self, var: relax.Var) -> relax.Expr | None:
        """What an operation outside a chosen block takes: of the same type as before."""
        if var not in self.wide:
            return self.replaced.get(var)
        if var not in self.narrow:
            self.narrow[var] = self.builder_.emit(relax.op.astype(self.wide[var], _NARROW))
        return self.narrow[var]

    def _reads_wide_as_float32(self, value: relax.Expr) -> bool:
        return (
            isinstance(value, relax.Call)
            and value.op == _ASTYPE
            and str(value.ty.dtype) == _WIDE
            and value.args[0] in self.wide
        )

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        """Binds what stands for `var`, which may be of a wider type."""
        if not isinstance(value, relax.Var):
            dataflow = isinstance(var, relax.DataflowVar)
            value = (self.builder_.emit if dataflow else self._emit_output)(value)
        if _holds_narrow(value.ty):
            raise ValueError(
                f"fp32_layers: block {self.block} holds an operation that stays float16: {value}."
            )
        if _is_narrow(var.ty):
            self.wide[var] = value
        else:
            self.replaced[var] = value

    def _emit_output(self, value: relax.Expr) -> relax.Var:
        in_dataflow = self.builder_.current_block_is_dataflow()
        return (self.builder_.emit_output if in_dataflow else self.builder_.emit)(value)

    def _widen(self, value: relax.Expr) -> relax.Expr:
        """The same operation in float32."""
        if not isinstance(value, relax.Call):
            return self.visit_expr(value)
        if value.op == _ASTYPE:
            source = self._argument(value.args[0])
            dtype = _WIDE if _is_narrow(value.ty) else str(value.ty.dtype)
            same = str(source.ty.dtype) == dtype
            return source if same else relax.op.astype(source, dtype)
        if value.op == _MATMUL:
            return relax.op.matmul(*map(self._argument, value.args), out_dtype=_WIDE)
        if value.op == _DPS_PACKED:
            args = [self._packed_argument(arg) for arg in value.args[1].fields]
            types = [_widened(ty) for ty in value.ty_args]
            return relax.Call(
                value.op, [value.args[0], relax.Tuple(args)], value.attrs, types, value.span
            )
        if value.op == _PURE_PACKED:
            is_mark = packed_name(value) in (BLOCK_BEGIN, BLOCK_END)
            convert = self._argument if is_mark else self._packed_argument
            args = [value.args[0], *map(convert, value.args[1:])]
            types = [_widened(ty) for ty in value.ty_args]
            return relax.Call(value.op, args, value.attrs, types, value.span)
        args = [self._argument(arg) for arg in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args, value.span)

    def _argument(self, arg: relax.Expr) -> relax.Expr:
        """An operator's argument, in float32 where it was float16."""
        if arg in self.wide:
            return self.wide[arg]
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._argument(field) for field in arg.fields])
        if not _is_narrow(arg.ty):
            return self.visit_expr(arg)
        constant = constant_value(arg)
        if constant is not None:
            return relax.const(constant.numpy().astype(_WIDE))
        return self.builder_.emit(relax.op.astype(self.visit_expr(arg), _WIDE))

    def _packed_argument(self, arg: relax.Expr) -> relax.Expr:
        """A named operation's argument: one that comes from a parameter stays as it is stored."""
        return self.wide[arg] if arg in self.wide else self.visit_expr(arg)
