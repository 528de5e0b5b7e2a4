"""Replaces named operations, linear layers and normalizations by TIR kernels for one target."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels import product_cpu
from mlc_rwkv_world.kernels.activation import quantize
from mlc_rwkv_world.kernels.arithmetic_cpu import FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.bfloat16 import round_inputs
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.layer_norm import layer_norm
from mlc_rwkv_world.kernels.linear import linear
from mlc_rwkv_world.kernels.table import NAMED
from mlc_rwkv_world.models.operations import (
    LINEAR_PACKED,
    LINEAR_PACKED_INT8,
    PREFIX,
    STATE_SET,
)
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.transforms.calls import packed_name, plain, stored_in, tensor_type
from mlc_rwkv_world.transforms.kernel_table import KernelTable

_MATMUL = Op.get("relax.matmul")
_PERMUTE_DIMS = Op.get("relax.permute_dims")
_ASTYPE = Op.get("relax.astype")
_LAYER_NORM = Op.get("relax.nn.layer_norm")
_DEQUANTIZE = PREFIX + "dequantize"
_CONVERSIONS = {Inputs.BFLOAT16: round_inputs, Inputs.BYTES: quantize}


@tvm.transform.module_pass(opt_level=0, name="ChooseKernels")
class ChooseKernels:
    """Every operation whose types are settled gets the kernel for those types and this target.

    A weight is read as it is stored: the `dequantize` or cast in front of a product becomes part
    of the product's kernel.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        chooser = _Chooser(mod, self.target)
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function):
                chooser.builder_.update_func(gvar, chooser.visit_expr(func))
        return relax.transform.DeadCodeElimination()(chooser.builder_.get())


@mutator
class _Chooser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        self._kernels = KernelTable(self.builder_, target)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        name = packed_name(call)
        if name == STATE_SET:
            return self._state_set(call)
        if name == LINEAR_PACKED:
            return self._linear_packed(call, FLOAT32)
        if name == LINEAR_PACKED_INT8:
            return self._linear_packed(call, INT8)
        if name is not None and name.startswith(PREFIX) and name != _DEQUANTIZE:
            return self._named(call, name.removeprefix(PREFIX))
        if call.op == _MATMUL:
            return self._linear(call)
        if call.op == _LAYER_NORM and self.target.kind.name == "llvm":
            return self._layer_norm(call)
        return call

    def _named(self, call: relax.Call, name: str) -> relax.Expr:
        args, stored = stored_in(call.args[1].fields)
        out = call.ty_args[0]
        outs = list(out.fields) if isinstance(out, relax.TupleType) else [out]
        types = [tensor_type(ty) for ty in outs]
        func = self._kernels.add(name, NAMED[name], args, types, stored)
        return relax.call_tir(func, relax.Tuple(args), outs if len(outs) > 1 else outs[0])

    def _state_set(self, call: relax.Call) -> relax.Expr:
        _, state, layer, row, value = call.args
        func = self._kernels.add("state_set", NAMED["state_set"], [state, value], [])
        args = relax.Tuple([state, layer, row, value])
        return relax.call_tir_inplace(func, args, 0, state.ty)

    def _linear(self, call: relax.Call) -> relax.Expr:
        x, transposed = call.args
        permute = self._binding(transposed)
        if not (isinstance(permute, relax.Call) and permute.op == _PERMUTE_DIMS):
            return call
        weight, stored = self._stored(permute.args[0])
        args = [x, *weight]
        func = self._kernels.add("linear", linear, args, [tensor_type(call.ty)], [stored])
        return relax.call_tir(func, relax.Tuple(args), call.ty)

    def _linear_packed(self, call: relax.Call, arithmetic: str) -> relax.Expr:
        (x, weight), (stored,) = stored_in(call.args[1].fields)
        out, inner = tensor_type(call.ty_args[0]), tensor_type(x.ty).static(1)
        inputs = inputs_of(stored, arithmetic)
        if inputs is not Inputs.FLOAT32:
            convert = _CONVERSIONS[inputs]
            wanted = input_type(out.shape[0], inner, inputs)
            func = self._kernels.add(convert.__name__, convert, [x], [wanted])
            ty = relax.TensorType(list(wanted.shape), wanted.dtype)
            x = self.builder_.emit(relax.call_tir(func, relax.Tuple([x]), ty))
        func = self._kernels.add(
            "linear_packed", product_cpu.linear_packed, [x, weight], [out], [stored], inputs
        )
        return relax.call_tir(func, relax.Tuple([x, weight]), call.ty_args[0])

    def _layer_norm(self, call: relax.Call) -> relax.Expr:
        args = list(call.args)
        eps = float(call.attrs.epsilon)
        func = self._kernels.add("layer_norm", layer_norm, args, [], eps=eps)
        return relax.call_tir(func, relax.Tuple(args), call.ty)

    def _stored(self, weight: relax.Expr) -> tuple[list[relax.Expr], Stored]:
        """The tensors in which a dense weight is stored, and how."""
        value = self._binding(weight)
        if packed_name(value) == _DEQUANTIZE:
            tensors, (stored,) = stored_in(value.args[1].fields)
            return tensors, stored
        if isinstance(value, relax.Call) and value.op == _ASTYPE:
            weight = value.args[0]
        return [weight], plain(weight)

    def _binding(self, expr: relax.Expr) -> relax.Expr:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
