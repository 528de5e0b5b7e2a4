"""Puts what surrounds each product of a decode step on CUDA into the product's kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels import matvec_cuda
from mlc_rwkv_world.kernels.dot_cuda import Streamed
from mlc_rwkv_world.kernels.norm_mix_cuda import norm_mix_step
from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.transforms.calls import tensor_type
from mlc_rwkv_world.transforms.kernel_table import KernelTable
from mlc_rwkv_world.transforms.rwkv4_blocks import (
    ChannelMix,
    Mix,
    Product,
    States,
    TimeMix,
    find_blocks,
)
from mlc_rwkv_world.tvm_names import name_of


@tvm.transform.module_pass(opt_level=0, name="FuseDecode")
class FuseDecode:
    """Five kernels for a block: the time mix and its output, the channel mix's two products, and
    before each mix its normalization, token shift and mixing. State rows are written in place.

    What does not look like that, or has sizes that do not suit the kernels, stays as it is.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if not Signature([], [], self.target).has_async_copies:
            return mod
        fuser = _Fuser(mod, self.target)
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function) and isinstance(func.body, relax.SeqExpr):
                fuser.builder_.update_func(gvar, fuser.fuse(func))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


def _stored(product: Product) -> list[relax.Expr]:
    """A weight as the kernels take it: two tensors, which are one where it is not quantized."""
    return list(product.weight if len(product.weight) == 2 else product.weight * 2)


def _suitable(products: Sequence[Product], same: bool) -> bool:
    """Whether the kernels take these products of one row; `same` asks for one storage."""
    kinds = []
    for product in products:
        x, weight = (tensor_type(part.ty) for part in (product.x, product.weight[0]))
        if product.packed is not None or x.shape[0] != 1:
            return False
        one = Streamed.of(x, weight, product.stored)
        if not one.can_stream:
            return False
        whole = (one.inner,) if same else ()
        kinds.append((x.dtype, one.outer, one.stored, *whole))
    return len(set(kinds)) == 1


@mutator
class _Fuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self._kernels = KernelTable(self.builder_, target)
        self._instead: dict[relax.Var, relax.Expr] = {}
        self._at: dict[relax.Var, list[Callable[[], None]]] = {}
        self._order: dict[relax.Var, int] = {}

    def fuse(self, func: relax.Function) -> relax.Function:
        self._instead, self._at = {}, {}
        # The order of bindings says where a fused call has all that it takes.
        bindings = (binding for block in func.body.blocks for binding in block.bindings)
        self._order = {binding.var: number for number, binding in enumerate(bindings)}
        for block in find_blocks(func):
            time, channel, states = block.time, block.channel, block.states
            if states is not None and block.offsets is None:
                self._norm_mix(time.mix, block.layer, states.before, states.mixed)
                self._norm_mix(channel.mix, block.layer, states.stepped, states.after)
                self._time_mix(time, block.layer, states)
            self._output(time)
            self._channel_mix(channel)
        return self.visit_expr(func) if self._at else func

    # A variable with a replacement is not bound again; a fused call is emitted in its place.

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        for emit in self._at.get(binding.var, []):
            emit()
        if binding.var not in self._instead:
            super().visit_var_binding_(binding)

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return self._instead[var] if var in self._instead else super().visit_var_(var)

    def visit_dataflow_var_(self, var: relax.Var) -> relax.Expr:
        return self._instead[var] if var in self._instead else super().visit_dataflow_var_(var)

    def _norm_mix(self, mix: Mix, layer: int, before: relax.Expr, written: relax.Var) -> None:
        outs = [blend.ty for blend in mix.blends]
        if self._position(before) > self._position(mix.normal):
            return
        if len({str(out.dtype) for out in outs}) != 1:
            return

        def emit() -> None:
            state = self.visit_expr(before)
            args = [self.visit_expr(arg) for arg in (mix.x, *mix.norm, *mix.ratios)]
            func = self._kernels.add(
                "norm_mix_step",
                norm_mix_step,
                [*args, state],
                [tensor_type(out) for out in outs],
                eps=mix.eps,
            )
            place = [relax.prim_value(layer), relax.prim_value(mix.row)]
            call = relax.call_tir_inplace(
                func,
                relax.Tuple([*args, state, *place]),
                [*[-1] * len(outs), len(args)],
                [*outs, state.ty],
            )
            self._emit(call, [*mix.blends, written])

        self._place(mix.normal, emit, [*mix.blends, written])

    def _output(self, time: TimeMix) -> None:
        """residual + product."""
        if _suitable([time.output], same=True):
            args = [time.output.x, *_stored(time.output), time.residual]
            stored = [time.output.stored]
            self._replace("matvec_add", matvec_cuda.matvec_add, args, time.result, stored)

    def _time_mix(self, time: TimeMix, layer: int, states: States) -> None:
        """Three products, the recurrence and the gate."""
        products = [time.key, time.value, time.receptance]
        end, last = time.gated, states.stepped
        if not _suitable(products, same=True) or self._position(end) < self._position(last):
            return

        def emit() -> None:
            state = self.visit_expr(states.mixed)
            parts = [product.x for product in products]
            parts += [part for product in products for part in _stored(product)]
            args = [self.visit_expr(arg) for arg in (*parts, time.decay, time.first)]
            kernel = matvec_cuda.time_mix_step
            outs = [tensor_type(end.ty)]
            stored = [product.stored for product in products]
            func = self._kernels.add("time_mix_step", kernel, [*args, state], outs, stored)
            call = relax.call_tir_inplace(
                func,
                relax.Tuple([*args, state, relax.prim_value(layer)]),
                [-1, len(args)],
                [end.ty, state.ty],
            )
            self._emit(call, [end, last])

        self._place(last, emit, [end, last])

    def _channel_mix(self, channel: ChannelMix) -> None:
        """relu(product)^2; then residual + sigmoid(product) * product, and its halving."""
        if _suitable([channel.key], same=True):
            args = [channel.key.x, *_stored(channel.key)]
            kernel = matvec_cuda.matvec_relu_square
            stored = [channel.key.stored]
            self._replace("matvec_relu_square", kernel, args, channel.activated, stored)
        products = [channel.value, channel.receptance]
        if _suitable(products, same=False):
            args = [arg for product in products for arg in (product.x, *_stored(product))]
            self._replace(
                "matvec_gated_add",
                matvec_cuda.matvec_gated_add,
                [*args, channel.residual],
                channel.result,
                [product.stored for product in products],
                factor=channel.factor,
            )

    def _position(self, var: relax.Expr) -> int:
        """Where in the function a variable is bound; -1 for its parameters."""
        return self._order.get(var, -1)

    def _replace(
        self,
        name: str,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        end: relax.Var,
        stored: Sequence[Stored],
        **options: float,
    ) -> None:
        def emit() -> None:
            given = [self.visit_expr(arg) for arg in args]
            func = self._kernels.add(name, build, given, [tensor_type(end.ty)], stored, **options)
            self._instead[end] = self.builder_.emit(
                relax.call_tir(func, relax.Tuple(given), end.ty), name_of(end)
            )

        self._place(end, emit, [end])

    def _place(
        self, at: relax.Var, emit: Callable[[], None], replaced: Sequence[relax.Var]
    ) -> None:
        """Emits the fused call where `at` is bound, before any use of what it replaces."""
        self._at.setdefault(at, []).append(emit)
        for var in replaced:
            # Known when the call is emitted; until then nothing uses it.
            self._instead.setdefault(var, var)

    def _emit(self, call: relax.Call, results: Sequence[relax.Var]) -> None:
        fused = self.builder_.emit(call)
        for index, var in enumerate(results):
            self._instead[var] = self.builder_.emit(relax.TupleGetItem(fused, index))
