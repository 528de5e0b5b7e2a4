"""Replaces parts and named operations by TIR kernels for one target."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import tvm
from tvm import IRModule, relax
from tvm.ir import Op
from tvm.relax.frontend.nn import Tensor
from tvm.target import Target

from mlc_rwkv_world.compiler.passes.calls import packed_name, stored_in
from mlc_rwkv_world.compiler.passes.kernel_table import KernelTable
from mlc_rwkv_world.compiler.passes.rewrite import Rewriter
from mlc_rwkv_world.kernels.common.layer_norm import layer_norm
from mlc_rwkv_world.kernels.emitter import Rule, tensor_type
from mlc_rwkv_world.kernels.table import NAMED, Kernel
from mlc_rwkv_world.model.operations import STATE_SET
from mlc_rwkv_world.model.parts import PREFIX, Part, read
from mlc_rwkv_world.model.shared_parts import Decomposition
from mlc_rwkv_world.tvm_names import name_of

_LAYER_NORM = Op.get("relax.nn.layer_norm")
# What the pass leaves behind, as JSON: by function, how many parts of each name had no kernels.
DECOMPOSED = "rwkv_world_decomposed_parts"


@tvm.transform.module_pass(opt_level=0, name="ChooseKernels")
class ChooseKernels:
    """Each part becomes the kernels that `rules` has for it, else what `parts` says it means.

    That may hold smaller parts, and operations whose types are settled, which get their kernels in
    turn. Parts without kernels of their own are counted in an attribute of the module.
    """

    def __init__(
        self,
        target: Target,
        parts: Mapping[str, Decomposition],
        operations: Mapping[str, Kernel],
        rules: Mapping[str, Rule],
    ) -> None:
        self.target = target
        self.parts = parts
        self.operations = operations
        self.rules = rules

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        decomposed: dict[str, Counter[str]] = {}
        # A decomposition's own parts and operations are looked at in the next round.
        while _unsettled(mod):
            chooser = _Chooser(mod, self)
            mod = chooser.run()
            for function, counts in chooser.decomposed.items():
                decomposed.setdefault(function, Counter()).update(counts)
        mod = relax.transform.DeadCodeElimination()(mod)
        return mod.with_attr(DECOMPOSED, json.dumps(decomposed, sort_keys=True))


def _unsettled(mod: IRModule) -> bool:
    """Whether there is a part or a named operation left."""
    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            for block in func.body.blocks:
                for binding in block.bindings:
                    if (packed_name(binding.value) or "").startswith(PREFIX):
                        return True
    return False


class _Chooser(Rewriter):
    def __init__(self, mod: IRModule, chosen: ChooseKernels) -> None:
        super().__init__(mod)
        self.target = chosen.target
        self.chosen = chosen
        self.kernels = KernelTable(self.builder, chosen.target)
        self.decomposed: dict[str, Counter[str]] = {}
        self._function_name = ""

    def parameters(self, name: str, func: relax.Function) -> list[relax.Var]:
        self._function_name = name
        return list(super().parameters(name, func))

    def binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        new = self.substituted(value)
        part = read(new)
        if part is not None:
            return _bundled(self._part(part))
        name = packed_name(new)
        if name == STATE_SET:
            return self._state_set(new)
        if name is not None and name.startswith(PREFIX):
            return self._named(new, name.removeprefix(PREFIX))
        is_norm = isinstance(new, relax.Call) and new.op == _LAYER_NORM
        if is_norm and self.target.kind.name == "llvm":
            return self._layer_norm(new, var)
        if isinstance(new, relax.TupleGetItem) and isinstance(new.tuple_value, relax.Tuple):
            return new.tuple_value.fields[new.index]
        return self.emit(new, name_of(var))

    def _part(self, part: Part) -> list[Tensor]:
        rule = self.chosen.rules.get(part.name)
        found = rule(part, self.kernels) if rule is not None else None
        if found is not None:
            return list(found)
        if part.name not in self.chosen.parts:
            raise ValueError(f"the part {part.name} has neither kernels nor a decomposition")
        self.decomposed.setdefault(self._function_name, Counter())[part.name] += 1
        return list(self.chosen.parts[part.name](part))

    def _named(self, call: relax.Call, name: str) -> relax.Expr:
        args, stored = stored_in(call.args[1].fields)
        out = call.ty_args[0]
        outs = list(out.fields) if isinstance(out, relax.TupleType) else [out]
        kernel = self.chosen.operations[name]
        func = self.kernels.add(kernel, args, [tensor_type(ty) for ty in outs], stored)
        types = outs if len(outs) > 1 else outs[0]
        return self.emit(relax.call_tir(func, relax.Tuple(args), types), name)

    def _state_set(self, call: relax.Call) -> relax.Expr:
        _, pool, slots, layer, row, value = call.args
        func = self.kernels.add(NAMED["state_set"], [pool, slots, value], [])
        args = relax.Tuple([pool, slots, layer, row, value])
        return self.emit(relax.call_tir_inplace(func, args, 0, pool.ty), "pool")

    def _layer_norm(self, call: relax.Call, var: relax.Var) -> relax.Expr:
        args = list(call.args)
        func = self.kernels.add(layer_norm, args, [], eps=float(call.attrs.epsilon))
        return self.emit(relax.call_tir(func, relax.Tuple(args), var.ty), name_of(var))


def _bundled(results: list[Tensor]) -> relax.Expr:
    """A part's results as the value of its call."""
    exprs = [result._expr for result in results]
    return exprs[0] if len(exprs) == 1 else relax.Tuple(exprs)
