"""Computes a whole RWKV-4 block, where its weights are packed, in few kernels for a CPU.

A step becomes six kernels, of which four have products and run in parallel; a whole prompt nine.
A block that does not have the expected form, or whose values are not float32, is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels import channel_mix_cpu, mix_cpu, time_mix_cpu
from mlc_rwkv_world.kernels.arithmetic_cpu import FLOAT32, input_type
from mlc_rwkv_world.kernels.layer_norm import layer_norm
from mlc_rwkv_world.kernels.packed_weight import ROWS
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.models.operations import (
    BLOCK_BEGIN,
    BLOCK_END,
    LINEAR_PACKED,
    PREFIX,
    STATE_SET,
)
from mlc_rwkv_world.transforms.calls import (
    packed_name,
    tensor_type,
    type_key,
    with_root_block,
)
from mlc_rwkv_world.tvm_names import constant_value, name_of

# Rows of a layer's state, as `models.rwkv4` orders them.
_ATT_X, _RECURRENCE, _FFN_X = 0, (1, 2, 3), 4


@tvm.transform.module_pass(opt_level=0, name="FuseBlocksCPU")
class FuseBlocksCPU:
    """`arithmetic` is that of products with packed weights, by function; else float32."""

    def __init__(self, target: Target, arithmetic: Mapping[str, str]) -> None:
        self.target = target
        self.arithmetic = arithmetic

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        fuser = _Fuser(mod, self.target)
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function):
                matched = _matched_blocks(func)
                if matched:
                    fuser.begin(matched, self.arithmetic.get(name_of(gvar), FLOAT32))
                    fuser.builder_.update_func(gvar, fuser.visit_expr(func))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


class _Different(Exception):
    """A block does not have the expected form."""


@dataclasses.dataclass(frozen=True)
class _Mix:
    """Blends of a normalized row and the one before it."""

    norm: tuple[relax.Expr, relax.Expr, float]
    ratios: tuple[relax.Expr, ...]
    row: int


@dataclasses.dataclass(frozen=True)
class _Block:
    """The parts of a block; weights in the order key, value, receptance, output."""

    x: relax.Expr
    layer: int
    state: relax.Expr
    last_state: relax.Var
    offsets: relax.Expr | None
    time: _Mix
    time_weights: tuple[relax.Expr, ...]
    decay: relax.Expr
    first: relax.Expr
    channel: _Mix
    channel_weights: tuple[relax.Expr, ...]
    factor: float
    inside: frozenset[relax.Var]


def _matched_blocks(func: relax.Function) -> dict[relax.Var, _Block]:
    """The blocks of a function that can be fused, by the variable of their end."""
    bindings = [b for block in func.body.blocks for b in block.bindings]
    values = {b.var: b.value for b in bindings}
    found: dict[relax.Var, _Block] = {}
    begin = None
    for position, binding in enumerate(bindings):
        name = packed_name(binding.value)
        if name == BLOCK_BEGIN:
            begin = position
        elif name == BLOCK_END and begin is not None:
            region = bindings[begin + 1 : position]
            with suppress(_Different):
                found[binding.var] = _Matcher(values, region).block(
                    bindings[begin].var, binding.value.args[1]
                )
            begin = None
    return found


class _Matcher:
    """Takes a block apart from its end, and notes what it has used."""

    def __init__(
        self, values: Mapping[relax.Var, relax.Expr], region: Sequence[relax.Binding]
    ) -> None:
        self.values = values
        self.region = region
        self.used: set[relax.Var] = set()

    def _value(self, expr: relax.Expr) -> relax.Expr:
        if not isinstance(expr, relax.Var) or expr not in self.values:
            raise _Different
        self.used.add(expr)
        return self.values[expr]

    def op(self, expr: relax.Expr, name: str) -> Sequence[relax.Expr]:
        """The arguments of a call of a Relax operator."""
        value = self._value(expr)
        if not (isinstance(value, relax.Call) and value.op == Op.get("relax." + name)):
            raise _Different
        if str(value.ty.dtype) != "float32":
            raise _Different
        return list(value.args)

    def named(self, expr: relax.Expr, *names: str) -> tuple[str, Sequence[relax.Expr]]:
        """The name and the arguments of a named operation of ours."""
        value = self._value(expr)
        name = packed_name(value)
        if name is None or name.removeprefix(PREFIX) not in names:
            raise _Different
        return name.removeprefix(PREFIX), list(value.args[1].fields)

    def linear(self, expr: relax.Expr) -> Sequence[relax.Expr]:
        """Input and packed weight of a product."""
        return self.named(expr, LINEAR_PACKED.removeprefix(PREFIX))[1]

    def block(self, begin: relax.Var, end: relax.Expr) -> _Block:
        factor = 1.0
        if _is_op(self.values.get(end), "multiply"):
            end, constant = self.op(end, "multiply")
            factor = _constant(constant)
        middle, channel_out = self.op(end, "add")
        gate, product = self.op(channel_out, "multiply")
        squared, channel_value = self.linear(product)
        (positive,) = self.op(squared, "square")
        (key,) = self.op(positive, "nn.relu")
        xk, channel_key = self.linear(key)
        (receptance,) = self.op(gate, "sigmoid")
        xr, channel_receptance = self.linear(receptance)
        channel, x, channel_state, offsets, layer = self.mix([xk, xr])
        if not x.same_as(middle):
            raise _Different

        before, time_out = self.op(middle, "add")
        if not before.same_as(begin):
            raise _Different
        gated, time_output = self.linear(time_out)
        gate, summed = self.op(gated, "multiply")
        (receptance,) = self.op(gate, "sigmoid")
        xr, time_receptance = self.linear(receptance)
        name, args, results = self.recurrence(summed)
        xk, time_key = self.linear(args[0])
        xv, time_value = self.linear(args[1])
        (exponent,) = self.op(args[2], "negative")
        (decay,) = self.op(exponent, "exp")
        time, x, state, time_offsets, time_layer = self.mix([xk, xv, xr])
        rows = [self.state_row(row, state, layer) for row in args[4:7]]
        if not x.same_as(begin) or rows != list(_RECURRENCE) or time_layer != layer:
            raise _Different
        if (name == "wkv") != (offsets is not None) or not _same(offsets, time_offsets):
            raise _Different
        if offsets is not None and not args[7].same_as(offsets):
            raise _Different
        last = self.writes(state, channel_state, layer, results)
        if (time.row, channel.row) != (_ATT_X, _FFN_X):
            raise _Different
        for binding in self.region:
            is_parameter = isinstance(binding.value, relax.TupleGetItem)
            if binding.var not in self.used and not is_parameter:
                raise _Different
        weights = (time_key, time_value, time_receptance, time_output)
        ffn = (channel_key, channel_value, channel_receptance)
        if tensor_type(begin.ty).static(1) % ROWS or not _one_form([*weights, *ffn]):
            raise _Different
        return _Block(
            x=begin,
            layer=layer,
            state=state,
            last_state=last,
            offsets=offsets,
            time=time,
            time_weights=weights,
            decay=decay,
            first=args[3],
            channel=channel,
            channel_weights=ffn,
            factor=factor,
            inside=frozenset(self.used & {binding.var for binding in self.region}),
        )

    def mix(
        self, blends: Sequence[relax.Expr]
    ) -> tuple[_Mix, relax.Expr, relax.Expr, relax.Expr | None, int]:
        """The mix of some blends, its input, state, offsets (of whole prompts) and layer."""
        ratios = []
        sources: list[tuple[relax.Expr, relax.Expr]] = []
        for blend in blends:
            left, right = self.op(blend, "add")
            now, ratio = self.op(left, "multiply")
            before, rest = self.op(right, "multiply")
            one, again = self.op(rest, "subtract")
            if _constant(one) != 1.0 or not again.same_as(ratio):
                raise _Different
            ratios.append(ratio)
            sources.append((now, before))
        now, before = sources[0]
        if any(not (n.same_as(now) and b.same_as(before)) for n, b in sources):
            raise _Different
        offsets = None
        if packed_name(self.values.get(before)) == PREFIX + "token_shift":
            shifted, before, offsets = self.named(before, "token_shift")[1]
            if not shifted.same_as(now):
                raise _Different
        state, layer, row = self.named(before, "state_get")[1]
        value = self._value(now)
        x, weight, bias = self.op(now, "nn.layer_norm")
        norm = (weight, bias, float(value.attrs.epsilon))
        return _Mix(norm, tuple(ratios), _int(row)), x, state, offsets, _int(layer)

    def recurrence(
        self, summed: relax.Expr
    ) -> tuple[str, Sequence[relax.Expr], Sequence[relax.Expr]]:
        item = self._value(summed)
        if not (isinstance(item, relax.TupleGetItem) and item.index == 0):
            raise _Different
        name, args = self.named(item.tuple_value, "wkv", "wkv_step")
        parts: dict[int, relax.Var] = {}
        for binding in self.region:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(
                item.tuple_value
            ):
                parts[int(value.index)] = binding.var
                self.used.add(binding.var)
        if sorted(parts) != [0, 1, 2, 3]:
            raise _Different
        return name, args, [parts[index] for index in (1, 2, 3)]

    def state_row(self, expr: relax.Expr, state: relax.Expr, layer: int) -> int:
        args = self.named(expr, "state_get")[1]
        if not args[0].same_as(state) or _int(args[1]) != layer:
            raise _Different
        return _int(args[2])

    def writes(
        self,
        first: relax.Expr,
        middle: relax.Expr,
        layer: int,
        results: Sequence[relax.Expr],
    ) -> relax.Var:
        """The state after the block, which has to write all five rows, in order."""
        sets = [b for b in self.region if packed_name(b.value) == STATE_SET]
        if len(sets) != 5 or not middle.same_as(sets[3].var):
            raise _Different
        current = first
        for row, binding in enumerate(sets):
            _, state, at_layer, at_row, value = binding.value.args
            if not state.same_as(current) or (_int(at_layer), _int(at_row)) != (layer, row):
                raise _Different
            if row in _RECURRENCE and not value.same_as(results[row - 1]):
                raise _Different
            if packed_name(self.values.get(value)) == PREFIX + "last_token":
                self.named(value, "last_token")
            self.used.add(binding.var)
            current = binding.var
        return sets[-1].var


def _is_op(value: relax.Expr | None, name: str) -> bool:
    return isinstance(value, relax.Call) and value.op == Op.get("relax." + name)


def _same(one: relax.Expr | None, other: relax.Expr | None) -> bool:
    return one is other if one is None or other is None else bool(one.same_as(other))


def _constant(expr: relax.Expr) -> float:
    value = constant_value(expr)
    if value is None or value.numpy().size != 1:
        raise _Different
    return float(value.numpy())


def _int(expr: Any) -> int:
    value = expr.value if hasattr(expr, "value") else expr
    return int(value)


def _one_form(weights: Sequence[relax.Expr]) -> bool:
    """Whether all weights are packed alike."""
    return len({(ty.dtype, *ty.shape[2:]) for ty in (tensor_type(w.ty) for w in weights)}) == 1


@mutator
class _Fuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        self._kernels: dict[tuple[object, ...], relax.GlobalVar] = {}

    def begin(self, blocks: Mapping[relax.Var, _Block], arithmetic: str) -> None:
        """Prepares for a function with these blocks."""
        self.blocks = blocks
        self.arithmetic = arithmetic
        self.inside = {var for block in blocks.values() for var in block.inside}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.blocks:
            block = self.blocks[binding.var]
            out, state = self._fused(block)
            self.set_var_remap(binding.var, out)
            self.set_var_remap(block.last_state, state)
        elif binding.var not in self.inside:
            super().visit_var_binding_(binding)

    def _fused(self, block: _Block) -> tuple[relax.Var, relax.Var]:
        """Emits the block's kernels: its output and the state after it."""
        x, state = self.visit_expr(block.x), self.visit_expr(block.state)
        offsets = None if block.offsets is None else self.visit_expr(block.offsets)
        wk, wv, wr, wo = block.time_weights
        count, width = tensor_type(x.ty).shape
        layer = relax.prim_value(block.layer)

        *blends, state = self._mix(block.time, x, state, layer, offsets, wk)
        vectors = [block.decay, block.first]
        out = [self._input(count, wo)]
        if offsets is None:
            args = [*blends, wk, wv, wr, *vectors, state, layer]
            gated, state = self._call(time_mix_cpu.time_mix, args, out, state)
        else:
            kvr = self._call(
                time_mix_cpu.products,
                [*blends, wk, wv, wr],
                [TensorType((count, width), "float32")] * 3,
            )
            args = [*kvr, *vectors, offsets, state, layer]
            gated, state = self._call(time_mix_cpu.recurrence, args, out, state)
        rows = TensorType((count, width), "float32")
        (x,) = self._call(channel_mix_cpu.residual, [gated, wo, x], [rows])

        wk, wv, wr = block.channel_weights
        *blends, state = self._mix(block.channel, x, state, layer, offsets, wk)
        key, gate = self._call(
            channel_mix_cpu.key_receptance, [*blends, wk, wr], [self._input(count, wv), rows]
        )
        (x,) = self._call(
            channel_mix_cpu.gated_residual, [key, wv, gate, x], [rows], factor=block.factor
        )
        return x, state

    def _mix(
        self,
        mix: _Mix,
        x: relax.Expr,
        state: relax.Expr,
        layer: relax.Expr,
        offsets: relax.Expr | None,
        weight: relax.Expr,
    ) -> list[relax.Var]:
        """The blends, then the state."""
        count = tensor_type(x.ty).shape[0]
        outs = [self._input(count, weight)] * len(mix.ratios)
        norm, eps = list(mix.norm[:2]), mix.norm[2]
        tail = [*mix.ratios, state, layer, relax.prim_value(mix.row)]
        if offsets is None:
            return self._call(mix_cpu.norm_mix, [x, *norm, *tail], outs, state, eps=eps)
        (normal,) = self._call(layer_norm, [x, *norm], [tensor_type(x.ty)], eps=eps)
        return self._call(mix_cpu.shift_mix, [normal, offsets, *tail], outs, state)

    def _input(self, count: Any, weight: relax.Expr) -> TensorType:
        return input_type(count, tensor_type(weight.ty), self.arithmetic)

    def _call(
        self,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        outs: Sequence[TensorType],
        state: relax.Expr | None = None,
        **options: float,
    ) -> list[relax.Var]:
        """Emits a call; the results, and last the state where it is updated in place."""
        args = [self.visit_expr(arg) for arg in args]
        tensors = [tensor_type(arg.ty) for arg in args if isinstance(arg.ty, relax.TensorType)]
        key = (build.__name__, *map(type_key, [*tensors, *outs]), *options.items())
        if key not in self._kernels:
            func = with_root_block(build(Signature(tensors, outs, self.target), **options))
            self._kernels[key] = self.builder_.add_func(func, build.__name__)
        types = [relax.TensorType(list(out.shape), out.dtype) for out in outs]
        func = self._kernels[key]
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
