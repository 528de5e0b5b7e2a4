"""Prepares decode steps, of one sequence and of several, for capture as CUDA graphs."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels.emitter import tensor_type
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.kernels.state import state_load, state_store
from mlc_rwkv_world.transforms.calls import with_root_block
from mlc_rwkv_world.tvm_names import name_of

_STATE = "state"
CAPTURED = ("rwkv_world_decode", "rwkv_world_batch_decode")
# Names of a function's dynamic extents, for each of whose values a graph is captured.
_CAPTURE_EXTENTS = "relax.rewrite_cuda_graph.capture_symbolic_vars"


@tvm.transform.module_pass(opt_level=0, name="CaptureDecode")
class CaptureDecode:
    """Lets a decode step work on a copy of the state at a fixed address.

    A graph holds addresses, and each call brings a state of its own. So a step copies the state
    in, runs the graph on the copy, and copies it back: some megabytes a sequence, against a
    model's gigabytes. A batch has a graph for each number of sequences that it ever had.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if self.target.kind.name != "cuda":
            return mod
        copier = _Copier(mod, self.target)
        for gvar, func in mod.functions_items():
            if name_of(gvar) in CAPTURED:
                extents = sorted(name_of(var) for var in relax.analysis.defined_symbolic_vars(func))
                func = copier.visit_expr(func).with_attr(_CAPTURE_EXTENTS, extents)
                copier.builder_.update_func(gvar, func)
        return copier.builder_.get()


@mutator
class _Copier(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target

    def visit_function_(self, func: relax.Function) -> relax.Expr:
        self._state = next(p for p in func.params if name_of(p) == _STATE)
        self._copy: relax.Expr | None = None
        return super().visit_function_(func)

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return self._copy if self._copy is not None and var.same_as(self._state) else var

    def visit_seq_expr_(self, seq: relax.SeqExpr) -> relax.Expr:
        with_copies = []
        builder = self.builder_
        state, kind = self._state, tensor_type(self._state.ty)
        load = builder.add_func(
            with_root_block(state_load(Signature([kind], [kind], self.target))), "state_load"
        )
        store = builder.add_func(
            with_root_block(state_store(Signature([kind, kind], [], self.target))), "state_store"
        )
        for number, block in enumerate(seq.blocks):
            builder._begin_dataflow_block()
            if number == 0:
                self._copy = builder.emit(relax.call_tir(load, relax.Tuple([state]), state.ty))
            for binding in block.bindings:
                self.visit_binding(binding)
            if number == len(seq.blocks) - 1:
                logits, copy = self._results(seq.body)
                call = relax.call_tir_inplace(store, relax.Tuple([state, copy]), 0, state.ty)
                stored = builder.emit_output(call)
                output = builder.emit_output(logits)
            with_copies.append(builder._end_block())
        return relax.SeqExpr(with_copies, relax.Tuple([output, stored]))

    def _results(self, body: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
        value = self.visit_expr(body)
        while isinstance(value, relax.Var):
            value = self.lookup_binding(value)
        return value.fields[0], value.fields[1]
