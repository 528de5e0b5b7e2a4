"""Computes a whole RWKV-4 block, where its weights are packed, in few kernels for a CPU.

A step becomes six kernels, of which four have products and run in parallel; a whole prompt nine.
A block that does not have the expected form, or whose values are not float32, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels import channel_mix_cpu, mix_cpu, time_mix_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import FLOAT32, INT8, input_type, inputs_of
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.layer_norm import layer_norm
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.models.operations import LINEAR_PACKED, LINEAR_PACKED_INT8
from mlc_rwkv_world.storage.stored import ROWS, Stored
from mlc_rwkv_world.transforms.calls import tensor_type
from mlc_rwkv_world.transforms.kernel_table import KernelTable
from mlc_rwkv_world.transforms.rwkv4_blocks import Block, Mix, Product, States, find_blocks

# What each kind of product with a packed weight computes in.
_ARITHMETICS: dict[str | None, str] = {LINEAR_PACKED: FLOAT32, LINEAR_PACKED_INT8: INT8}


@tvm.transform.module_pass(opt_level=0, name="FuseBlocksCPU")
class FuseBlocksCPU:
    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        fuser = _Fuser(mod, self.target)
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function):
                blocks = [(b, b.states) for b in find_blocks(func) if b.states and _suits(b)]
                if blocks:
                    fuser.begin(blocks)
                    fuser.builder_.update_func(gvar, fuser.visit_expr(func))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


def _suits(block: Block) -> bool:
    """Whether the kernels take a block: float32, whole blocks of rows, all weights packed alike."""
    time, channel = block.time, block.channel
    products = [time.key, time.value, time.receptance, time.output]
    products += [channel.key, channel.receptance, channel.value]
    if block.narrow or len({product.packed for product in products}) > 1:
        return False
    if time.key.packed is None:
        return False
    alike = len({product.stored for product in products}) == 1
    return alike and tensor_type(time.mix.x.ty).static(1) % ROWS == 0


def _inputs(product: Product) -> Inputs:
    """What a product with a packed weight takes."""
    return inputs_of(product.stored, _ARITHMETICS[product.packed])


@mutator
class _Fuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self._kernels = KernelTable(self.builder_, target)

    def begin(self, blocks: Sequence[tuple[Block, States]]) -> None:
        """Prepares for a function with these blocks."""
        self.blocks = {block.end: (block, states) for block, states in blocks}
        self.inside = {var for block, _ in blocks for var in block.inside}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.blocks:
            block, states = self.blocks[binding.var]
            out, state = self._fused(block, states)
            self.set_var_remap(binding.var, out)
            self.set_var_remap(states.after, state)
        elif binding.var not in self.inside:
            super().visit_var_binding_(binding)

    def _fused(self, block: Block, states: States) -> tuple[relax.Var, relax.Var]:
        """Emits the block's kernels: its output and the state after it."""
        time, channel, offsets = block.time, block.channel, block.offsets
        weights = [product.weight[0] for product in (time.key, time.value, time.receptance)]
        # All weights are stored alike.
        one, inputs = time.key.stored, _inputs(time.key)
        layer = relax.prim_value(block.layer)
        x, state = self.visit_expr(time.mix.x), self.visit_expr(states.before)
        rows = tensor_type(x.ty)

        *blends, state = self._mix(time.mix, x, state, layer, offsets, time.key)
        vectors = [time.decay, time.first]
        out = [self._input(rows.shape[0], time.output)]
        if offsets is None:
            args = [*blends, *weights, *vectors, state, layer]
            gated, state = self._call(time_mix_cpu.time_mix, args, out, state, [one], inputs)
        else:
            kvr = self._call(
                time_mix_cpu.products, [*blends, *weights], [rows] * 3, None, [one], inputs
            )
            args = [*kvr, *vectors, offsets, state, layer]
            gated, state = self._call(time_mix_cpu.recurrence, args, out, state, (), inputs)
        args = [gated, time.output.weight[0], x]
        (x,) = self._call(channel_mix_cpu.residual, args, [rows], None, [one], inputs)

        *blends, state = self._mix(channel.mix, x, state, layer, offsets, channel.key)
        key, gate = self._call(
            channel_mix_cpu.key_receptance,
            [*blends, channel.key.weight[0], channel.receptance.weight[0]],
            [self._input(rows.shape[0], channel.value), rows],
            None,
            [one, one],
            inputs,
        )
        args = [key, channel.value.weight[0], gate, x]
        (x,) = self._call(
            channel_mix_cpu.gated_residual,
            args,
            [rows],
            None,
            [one],
            inputs,
            factor=channel.factor,
        )
        return x, state

    def _mix(
        self,
        mix: Mix,
        x: relax.Expr,
        state: relax.Expr,
        layer: relax.Expr,
        offsets: relax.Expr | None,
        product: Product,
    ) -> list[relax.Var]:
        """The blends, as inputs of a product, then the state."""
        rows = tensor_type(x.ty)
        outs, inputs = [self._input(rows.shape[0], product)] * len(mix.ratios), _inputs(product)
        tail = [*mix.ratios, state, layer, relax.prim_value(mix.row)]
        if offsets is None:
            args = [x, *mix.norm, *tail]
            return self._call(mix_cpu.norm_mix, args, outs, state, (), inputs, eps=mix.eps)
        (normal,) = self._call(layer_norm, [x, *mix.norm], [rows], eps=mix.eps)
        return self._call(mix_cpu.shift_mix, [normal, offsets, *tail], outs, state, (), inputs)

    def _input(self, count: Any, product: Product) -> TensorType:
        return input_type(count, tensor_type(product.x.ty).static(1), _inputs(product))

    def _call(
        self,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        outs: Sequence[TensorType],
        state: relax.Expr | None = None,
        stored: Sequence[Stored] = (),
        inputs: Inputs = Inputs.FLOAT32,
        **options: float,
    ) -> list[relax.Var]:
        """Emits a call; the results, and last the state where it is updated in place."""
        args = [self.visit_expr(arg) for arg in args]
        func = self._kernels.add(build.__name__, build, args, outs, stored, inputs, **options)
        types = [relax.TensorType(list(out.shape), out.dtype) for out in outs]
        if state is None:
            call = relax.call_tir(func, relax.Tuple(args), types if len(types) > 1 else types[0])
        else:
            place = next(i for i, arg in enumerate(args) if arg.same_as(state))
            indices = [-1] * len(types) + [place]
            call = relax.call_tir_inplace(func, relax.Tuple(args), indices, [*types, state.ty])
        result = self.builder_.emit(call)
        if state is None and len(types) == 1:
            return [result]
        count = len(types) + (state is not None)
        return [self.builder_.emit(relax.TupleGetItem(result, i)) for i in range(count)]
