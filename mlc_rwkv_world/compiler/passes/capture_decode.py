"""Prepares decode steps, of one sequence and of several, for capture as CUDA graphs."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.target import Target

from mlc_rwkv_world.artifact.abi import BATCH_DECODE, DECODE, POOL, SLOTS
from mlc_rwkv_world.compiler.passes.rewrite import Rewriter
from mlc_rwkv_world.kernels.common.state import slots_at_hand
from mlc_rwkv_world.kernels.emitter import tensor_type
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.tvm_names import name_of

_CAPTURED = (DECODE, BATCH_DECODE)
# How many of a function's arguments come anew with each call; the others stay where they are.
_NEW_ARGUMENTS = "num_input"
# Names of a function's dynamic extents, for each of whose values a graph is captured.
_CAPTURE_EXTENTS = "relax.rewrite_cuda_graph.capture_symbolic_vars"


@tvm.transform.module_pass(opt_level=0, name="CaptureDecode")
class CaptureDecode:
    """Says that the pool stays where it is, as the weights do, and takes a copy of the slots.

    A graph holds addresses. Token ids are read before it, and the slots, some bytes, are copied to
    where the graph finds them. A pool that grows moves, and has another number of slots: there is a
    graph for each number of slots and of sequences that a function ever had.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if self.target.kind.name != "cuda":
            return mod
        prepared = _Preparer(mod, self.target).run()
        for gvar, func in prepared.functions_items():
            if name_of(gvar) in _CAPTURED:
                names = [name_of(param) for param in func.params]
                extents = sorted(name_of(var) for var in relax.analysis.defined_symbolic_vars(func))
                func = func.with_attr(_NEW_ARGUMENTS, names.index(POOL))
                prepared[gvar] = func.with_attr(_CAPTURE_EXTENTS, extents)
        return prepared


class _Preparer(Rewriter):
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        # The slots of a function that have not been copied yet.
        self._slots: relax.Var | None = None

    def parameters(self, name: str, func: relax.Function) -> list[relax.Var]:
        slots = [param for param in func.params if name_of(param) == SLOTS]
        self._slots = slots[0] if name in _CAPTURED else None
        return list(func.params)

    def binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        slots, self._slots = self._slots, None
        if slots is not None:
            kind = tensor_type(slots.ty)
            kernel = finished(slots_at_hand(Signature([kind], [kind], self.target)))
            func = self.builder.add_func(kernel, slots_at_hand.__name__)
            self.replace(slots, self.emit(relax.call_tir(func, relax.Tuple([slots]), slots.ty)))
        return super().binding(var, value)
