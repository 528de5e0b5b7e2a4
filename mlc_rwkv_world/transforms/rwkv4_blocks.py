"""Finds the RWKV-4 blocks of an exported function, and what plays which part in each.

A block stands between its two marks. Values may be float16 or float32, with casts anywhere; weights
plain, quantized or packed; the state ours or another. A block of another form is not found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tvm import relax
from tvm.ir import Op

from mlc_rwkv_world.models.operations import (
    BLOCK_BEGIN,
    BLOCK_END,
    LINEAR_PACKED,
    LINEAR_PACKED_INT8,
    PREFIX,
    STATE_SET,
)
from mlc_rwkv_world.models.rwkv4 import ATT_X, FFN_X
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.transforms.calls import packed_name, plain, stored_in
from mlc_rwkv_world.tvm_names import constant_value


@dataclasses.dataclass(frozen=True)
class Product:
    """`x W^T`; the tensors in which W is stored, and how.

    `packed` names the operation of ours that takes W packed, else None.
    """

    x: relax.Expr
    weight: tuple[relax.Expr, ...]
    stored: Stored
    packed: str | None


@dataclasses.dataclass(frozen=True)
class Mix:
    """Rows x, normalized and blended with the row before: one blend for each ratio.

    The first row before comes from the state's row `row`, as `last`.
    """

    x: relax.Expr
    normal: relax.Var
    norm: tuple[relax.Expr, relax.Expr]
    eps: float
    ratios: tuple[relax.Expr, ...]
    blends: tuple[relax.Var, ...]
    row: int
    last: relax.Expr


@dataclasses.dataclass(frozen=True)
class TimeMix:
    """`result = residual + output`, whose input is `gated = sigmoid(r) wkv(k, v)`.

    `decay` is the stored time_decay; `rows` are a, b and p before and after.
    """

    mix: Mix
    key: Product
    value: Product
    receptance: Product
    decay: relax.Expr
    first: relax.Expr
    rows: tuple[tuple[relax.Expr, relax.Var], ...]
    gated: relax.Var
    output: Product
    residual: relax.Expr
    result: relax.Var


@dataclasses.dataclass(frozen=True)
class ChannelMix:
    """`result = factor (residual + sigmoid(r) value)`; value's input is `activated`, relu(k)^2."""

    mix: Mix
    key: Product
    receptance: Product
    activated: relax.Var
    value: Product
    residual: relax.Expr
    factor: float
    result: relax.Var


@dataclasses.dataclass(frozen=True)
class States:
    """Our state tensor before a block, after its mixed row, after its recurrence, and behind it."""

    before: relax.Expr
    mixed: relax.Var
    stepped: relax.Var
    after: relax.Var


@dataclasses.dataclass(frozen=True)
class Block:
    """A block and its layer's number; `offsets` divides rows into sequences, None for steps.

    `end` is the mark's result. `states` is None where the block keeps its rows in another state, or
    holds anything besides its parts. `inside` are the variables between the marks, without
    parameters; `narrow` says whether there are casts, or values other than float32.
    """

    layer: int
    offsets: relax.Expr | None
    time: TimeMix
    channel: ChannelMix
    states: States | None
    end: relax.Var
    inside: frozenset[relax.Var]
    narrow: bool


def find_blocks(func: relax.Function) -> list[Block]:
    """The blocks of a function, in order."""
    blocks = func.body.blocks if isinstance(func.body, relax.SeqExpr) else []
    bindings = [binding for block in blocks for binding in block.bindings]
    values = {binding.var: binding.value for binding in bindings}
    found: list[Block] = []
    begin = None
    for position, binding in enumerate(bindings):
        name = packed_name(binding.value)
        if name == BLOCK_BEGIN:
            begin = position
        elif name == BLOCK_END and begin is not None:
            with suppress(_Different):
                matcher = _Matcher(values, bindings[begin + 1 : position])
                found.append(matcher.block(bindings[begin].var, binding))
            begin = None
    return found


class _Different(Exception):
    """A block does not have the expected form."""


class _Matcher:
    """Takes a block apart from its end, and notes what it has used."""

    def __init__(
        self, values: Mapping[relax.Var, relax.Expr], region: Sequence[relax.Binding]
    ) -> None:
        self.values = values
        self.region = region
        self.used: set[relax.Var] = set()

    def block(self, begin: relax.Var, mark: relax.Binding) -> Block:
        channel, offsets = self.channel_mix(self.uncast(mark.value.args[1]))
        time = self.time_mix(channel.residual, begin, offsets)
        layer, states = _int(mark.value.args[2]), None
        with suppress(_Different):
            states = self.states(time, channel, offsets, layer)
        inside = frozenset(self.used & {b.var for b in self.region})
        tensors = [var.ty for var in inside if isinstance(var.ty, relax.TensorType)]
        narrow = any(str(ty.dtype) != "float32" for ty in tensors)
        return Block(layer, offsets, time, channel, states, mark.var, inside, narrow)

    def states(
        self, time: TimeMix, channel: ChannelMix, offsets: relax.Expr | None, layer: int
    ) -> States:
        """Follows our state through the block, whose rows have to be written in order."""
        sets = [b for b in self.region if packed_name(b.value) == STATE_SET]
        rows = [(time.mix.last, self.kept(time.mix, offsets, sets[:1])), *time.rows]
        if len(sets) != len(rows) + 1:
            raise _Different
        before = self.named(time.mix.last, "state_get")[1][0]
        for row, (held, _) in enumerate(rows):
            self.state_row(held, before, layer, row)
        self.state_row(channel.mix.last, sets[3].var, layer, channel.mix.row)
        rows.append((channel.mix.last, self.kept(channel.mix, offsets, sets[-1:])))
        state = before
        for row, ((_, value), binding) in enumerate(zip(rows, sets, strict=True)):
            _, given, at_layer, at_row, written = binding.value.args
            if not (given.same_as(state) and written.same_as(value)):
                raise _Different
            if (_int(at_layer), _int(at_row)) != (layer, row):
                raise _Different
            self.used.add(binding.var)
            state = binding.var
        if any(b.var not in self.used for b in self.region if not _is_item(b.value)):
            raise _Different
        return States(before, sets[0].var, sets[3].var, sets[4].var)

    def kept(
        self, mix: Mix, offsets: relax.Expr | None, sets: Sequence[relax.Binding]
    ) -> relax.Expr:
        """What a mix keeps in the state: the last row of each sequence."""
        if offsets is None or not sets:
            return mix.normal
        value = sets[0].value.args[4]
        rows, to = self.named(value, "last_token")[1]
        if not (rows.same_as(mix.normal) and to.same_as(offsets)):
            raise _Different
        return value

    def channel_mix(self, end: relax.Expr) -> tuple[ChannelMix, relax.Expr | None]:
        """The channel mix, and what divides its rows."""
        result, factor = end, 1.0
        if _is_op(self.values.get(end), "multiply"):
            end, constant = self.op(end, "multiply")
            factor = _constant(constant)
        residual, out = self.op(end, "add")
        gate, scaled = self.op(out, "multiply")
        value = self.product(scaled)
        (positive,) = self.op(value.x, "square")
        key = self.product(self.op(positive, "nn.relu")[0])
        receptance = self.product(self.op(gate, "sigmoid")[0])
        mix, offsets = self.mix([key.x, receptance.x], FFN_X)
        if not mix.x.same_as(self.uncast(residual)):
            raise _Different
        found = ChannelMix(mix, key, receptance, value.x, value, residual, factor, result)
        return found, offsets

    def time_mix(self, result: relax.Expr, begin: relax.Var, offsets: relax.Expr | None) -> TimeMix:
        residual, out = self.op(result, "add")
        output = self.product(out)
        gate, summed = self.op(output.x, "multiply")
        receptance = self.product(self.op(gate, "sigmoid")[0])
        name, args, results = self.recurrence(summed)
        key, value = self.product(args[0]), self.product(args[1])
        (exponent,) = self.op(args[2], "negative")
        (decay,) = self.op(exponent, "exp")
        mix, along = self.mix([key.x, value.x, receptance.x], ATT_X)
        if not (mix.x.same_as(begin) and self.uncast(residual).same_as(begin)):
            raise _Different
        if not (_same(along, offsets) and _same(args[7] if name == "wkv" else None, offsets)):
            raise _Different
        return TimeMix(
            mix=mix,
            key=key,
            value=value,
            receptance=receptance,
            decay=decay,
            first=args[3],
            rows=tuple(zip(args[4:7], results, strict=True)),
            gated=output.x,
            output=output,
            residual=residual,
            result=result,
        )

    def mix(self, blends: Sequence[relax.Expr], row: int) -> tuple[Mix, relax.Expr | None]:
        """The mix of some blends, and what divides its rows."""
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
        now, last = sources[0]
        if any(not (n.same_as(now) and b.same_as(last)) for n, b in sources):
            raise _Different
        offsets = None
        if packed_name(self.values.get(last)) == PREFIX + "token_shift":
            shifted, last, offsets = self.named(last, "token_shift")[1]
            if not shifted.same_as(now):
                raise _Different
        value = self._value(now)
        x, weight, bias = self.op(now, "nn.layer_norm")
        mix = Mix(
            x=self.uncast(x),
            normal=now,
            norm=(weight, bias),
            eps=float(value.attrs.epsilon),
            ratios=tuple(ratios),
            blends=tuple(blends),
            row=row,
            last=last,
        )
        return mix, offsets

    def recurrence(
        self, summed: relax.Expr
    ) -> tuple[str, Sequence[relax.Expr], Sequence[relax.Expr]]:
        """The name and arguments of the recurrence, and its new a, b and p."""
        item = self._value(summed)
        if not (isinstance(item, relax.TupleGetItem) and item.index == 0):
            raise _Different
        name, args = self.named(item.tuple_value, "wkv", "wkv_step")
        parts: dict[int, relax.Var] = {}
        for binding in self.region:
            value = binding.value
            if _is_item(value) and value.tuple_value.same_as(item.tuple_value):
                parts[int(value.index)] = binding.var
                self.used.add(binding.var)
        if sorted(parts) != [0, 1, 2, 3]:
            raise _Different
        return name, args, [parts[index] for index in (1, 2, 3)]

    def product(self, expr: relax.Expr) -> Product:
        expr = self.uncast(expr)
        name = packed_name(self.values.get(expr))
        if name in (LINEAR_PACKED, LINEAR_PACKED_INT8):
            (x, weight), (stored,) = stored_in(self.named(expr, name.removeprefix(PREFIX))[1])
            return Product(x, (weight,), stored, name)
        x, transposed = self.op(expr, "matmul")
        (weight,) = self.op(transposed, "permute_dims")
        if packed_name(self.values.get(weight)) == PREFIX + "dequantize":
            tensors, (stored,) = stored_in(self.named(weight, "dequantize")[1])
            return Product(x, tuple(tensors), stored, None)
        weight = self.uncast(weight)
        return Product(x, (weight,), plain(weight), None)

    def state_row(self, expr: relax.Expr, state: relax.Expr, layer: int, row: int) -> None:
        """Asks for a row of a layer's state."""
        args = self.named(expr, "state_get")[1]
        if not args[0].same_as(state) or (_int(args[1]), _int(args[2])) != (layer, row):
            raise _Different

    def uncast(self, expr: relax.Expr) -> relax.Expr:
        """What is cast, where `expr` is a cast."""
        while _is_op(self.values.get(expr), "astype"):
            (expr,) = self._value(expr).args
        return expr

    def op(self, expr: relax.Expr, name: str) -> Sequence[relax.Expr]:
        """The arguments of a call of a Relax operator, through casts of its result."""
        value = self._value(self.uncast(expr))
        if not _is_op(value, name):
            raise _Different
        return list(value.args)

    def named(self, expr: relax.Expr, *names: str) -> tuple[str, Sequence[relax.Expr]]:
        """The name and the arguments of a named operation of ours."""
        value = self._value(expr)
        name = packed_name(value)
        if name is None or name.removeprefix(PREFIX) not in names:
            raise _Different
        return name.removeprefix(PREFIX), list(value.args[1].fields)

    def _value(self, expr: relax.Expr) -> relax.Expr:
        if not isinstance(expr, relax.Var) or expr not in self.values:
            raise _Different
        self.used.add(expr)
        return self.values[expr]


def _is_op(value: relax.Expr | None, name: str) -> bool:
    return isinstance(value, relax.Call) and value.op == Op.get("relax." + name)


def _is_item(value: relax.Expr) -> bool:
    return isinstance(value, relax.TupleGetItem)


def _same(one: relax.Expr | None, other: relax.Expr | None) -> bool:
    return one is other if one is None or other is None else bool(one.same_as(other))


def _constant(expr: relax.Expr) -> float:
    value = constant_value(expr)
    if value is None or value.numpy().size != 1:
        raise _Different
    return float(value.numpy())


def _int(expr: Any) -> int:
    return int(getattr(expr, "value", expr))
