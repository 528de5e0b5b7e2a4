"""An exported model taken apart: one step for each operation, so that every value can be seen.

A step computes what the operation computes inside a compiled model, from the same kernels and with
a result of the same type, and nothing is fused. Expressions of weights alone (a `dequantize`, a
cast) belong to the step that reads them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from posixpath import commonpath

import tvm_ffi
from tvm import IRModule, relax
from tvm.ir import Op

from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END, PREFIX, STATE_SET
from mlc_rwkv_world.transforms.calls import packed_name

_ASTYPE = Op.get("relax.astype")
_MATMUL = Op.get("relax.matmul")
_MULTIPLY = Op.get("relax.multiply")
_STATE_GET = PREFIX + "state_get"
_STORAGE = ("weight", "bias", "q_weight", "q_scale")
RESIDUAL = "residual"


@dataclasses.dataclass(frozen=True)
class Step:
    """Runs `function` on values and then on parameters; the result becomes value `gives`.

    `quantized` says that it is a product with a quantized weight.
    """

    function: str
    takes: tuple[int, ...]
    weights: tuple[str, ...]
    gives: int
    quantized: bool


@dataclasses.dataclass(frozen=True)
class Item:
    """Field `index` of the tuple `source`."""

    source: int
    index: int
    gives: int

    @property
    def takes(self) -> tuple[int, ...]:
        return (self.source,)


@dataclasses.dataclass(frozen=True)
class StateGet:
    """A row of the state as the start leaves it."""

    row: int
    gives: int
    takes: tuple[int, ...] = ()


AnyStep = Step | Item | StateGet


@dataclasses.dataclass(frozen=True)
class Row:
    """An operation whose result is looked at: its name in the block, and the value.

    `anchor` is the layer that it belongs to; a cast that rounds the result is part of it.
    """

    name: str
    anchor: str
    value: int


@dataclasses.dataclass(frozen=True)
class Section:
    """The steps of one block, or of what comes before the first block or after the last.

    `entry` is the residual that comes in, of type `entry_dtype`, and `exit` what goes out.
    """

    block: int | None
    entry: int
    entry_dtype: str
    exit: int
    steps: tuple[AnyStep, ...]
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole forward pass: before the blocks, the blocks, after them."""

    ids: int
    offsets: int
    first: Section
    blocks: tuple[Section, ...]
    last: Section


class Kernels:
    """The functions of all steps, each once."""

    def __init__(self) -> None:
        self.functions: dict[str, relax.Function] = {}
        self._found: dict[int, list[str]] = {}

    def add(self, func: relax.Function) -> str:
        """The name of this function, or of an equal one that is there already."""
        key = tvm_ffi.structural_hash(func)
        for name in self._found.get(key, ()):
            if tvm_ffi.structural_equal(self.functions[name], func):
                return name
        name = f"step_{len(self.functions)}"
        self.functions[name] = func
        self._found.setdefault(key, []).append(name)
        return name

    def module(self) -> IRModule:
        """All of them, as functions to export."""
        named = {
            name: func.with_attr("global_symbol", name) for name, func in self.functions.items()
        }
        return IRModule(named)


def take_apart(
    mod: IRModule, function: str, parameters: Sequence[str], kernels: Kernels
) -> Program:
    """The steps of `function`, whose shapes have to be known; its last argument are `parameters`.

    The first two arguments are token ids and offsets, the third is the state.
    """
    return _Reader(mod[function], parameters, kernels).program()


@dataclasses.dataclass
class _Open:
    """A section that is being read."""

    block: int | None
    entry: int
    entry_dtype: str
    steps: list[AnyStep] = dataclasses.field(default_factory=list)
    names: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    exit: int = -1


class _Reader:
    def __init__(self, func: relax.Function, parameters: Sequence[str], kernels: Kernels) -> None:
        self.func = func
        self.parameters = parameters
        self.kernels = kernels
        self.count = 0
        # What a variable is: a value, a parameter, or an expression of parameters alone.
        self.values: dict[relax.Var, int] = {}
        self.stored: dict[relax.Var, str] = {}
        self.expressions: dict[relax.Var, relax.Call] = {}
        self.tuples: dict[relax.Var, relax.Tuple] = {}
        self.written: set[tuple[int, int]] = set()
        # The layer that a value belongs to, and those that are no rows of their own.
        self.anchors: dict[int, str] = {}
        self.hidden: set[int] = set()
        self.sections: list[_Open] = []

    def program(self) -> Program:
        *inputs, _ = self.func.params
        ids, offsets, _ = inputs
        places = [self._new(ids), self._new(offsets)]
        self._begin(None, -1, "")
        for block in self.func.body.blocks:
            for binding in block.bindings:
                self._read(binding.var, binding.value)
        result = self.func.body.body
        outputs = self.tuples[result] if isinstance(result, relax.Var) else result
        self.section.exit = self.values[outputs.fields[0]]
        # Between two blocks there is nothing but casts of the residual, which are left out.
        blocks = tuple(_closed(part) for part in self.sections if part.block is not None)
        first, last = _closed(self.sections[0]), _closed(self.section)
        return Program(places[0], places[1], first, blocks, last)

    @property
    def section(self) -> _Open:
        return self.sections[-1]

    def _begin(self, block: int | None, entry: int, dtype: str) -> None:
        self.sections.append(_Open(block, entry, dtype))
        self.anchors[entry] = RESIDUAL

    def _new(self, var: relax.Var) -> int:
        self.values[var] = self.count
        self.count += 1
        return self.count - 1

    def _read(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.TupleGetItem):
            self._item(var, value)
        elif isinstance(value, relax.Var):
            self._alias(var, value)
        elif isinstance(value, relax.Tuple):
            self.tuples[var] = value
        else:
            self._call(var, value)

    def _alias(self, var: relax.Var, other: relax.Var) -> None:
        if other in self.values:
            self.values[var] = self.values[other]
        elif other in self.stored:
            self.stored[var] = self.stored[other]
        else:
            self.expressions[var] = self.expressions[other]

    def _item(self, var: relax.Var, value: relax.TupleGetItem) -> None:
        if value.tuple_value.same_as(self.func.params[-1]):
            self.stored[var] = self.parameters[int(value.index)]
            return
        source = self.values[value.tuple_value]
        gives = self._new(var)
        self.section.steps.append(Item(source, int(value.index), gives))
        self.anchors[gives] = self.anchors[source]
        if int(value.index) == 0 and source in self.section.names:
            self.section.names[gives] = self.section.names.pop(source)

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        name = packed_name(call)
        if name == BLOCK_BEGIN:
            source = self.values[call.args[1]]
            self.section.exit = source
            self.values[var] = source
            self._begin(int(call.args[2].value), source, str(call.ty.dtype))
        elif name == BLOCK_END:
            self.values[var] = self.section.exit = self.values[call.args[1]]
            self._begin(None, self.values[var], str(call.ty.dtype))
        elif name == STATE_SET:
            self.written.add((int(call.args[2].value), int(call.args[3].value)))
        elif name == _STATE_GET:
            _, layer, row = (field for field in call.args[1].fields)
            if (int(layer.value), int(row.value)) in self.written:
                raise ValueError("the model reads a row of the state that it has just written")
            self.section.steps.append(StateGet(int(row.value), self._new(var)))
        elif not any(arg in self.values for arg in _variables(call)):
            self.expressions[var] = call
        else:
            self._operation(var, call)

    def _operation(self, var: relax.Var, call: relax.Call) -> None:
        builder = _Function(self, call)
        takes, weights = builder.takes, builder.weights
        gives = self._new(var)
        quantized = call.op == _MATMUL and any(name.endswith("q_weight") for name in weights)
        function = self.kernels.add(builder.function)
        self.section.steps.append(Step(function, takes, weights, gives, quantized))
        source = max((value for value in takes if value in self.anchors), default=-1)
        if call.op == _ASTYPE:
            self.anchors[gives] = self.anchors[source]
            narrower = str(call.ty.dtype) == "float16"
            # What is rounded at once is looked at as it is then.
            if narrower and source in self.section.names:
                self.section.names[gives] = self.section.names.pop(source)
            return
        layers = sorted({_layer(weight) for weight in weights})
        operation = _operation_name(call)
        if len(layers) == 1:
            anchor = name = layers[0]
        elif layers:
            parent = commonpath([layer.replace(".", "/") for layer in layers])
            anchor = name = ".".join([*filter(None, parent.split("/")), operation])
        else:
            anchor = self.anchors.get(source, RESIDUAL)
            mixed = any(value in self.hidden for value in takes)
            name = anchor if mixed else f"{anchor} {operation}"
        self.anchors[gives] = anchor
        if call.op == _MULTIPLY and layers:
            self.hidden.add(gives)
        else:
            self.section.names[gives] = (name, anchor)


def _variables(call: relax.Call) -> list[relax.Var]:
    """The variables that a call reads, those in its tuples included."""
    found: list[relax.Var] = []
    for arg in call.args:
        fields = arg.fields if isinstance(arg, relax.Tuple) else [arg]
        found += [field for field in fields if isinstance(field, relax.Var)]
    return found


def _operation_name(call: relax.Call) -> str:
    name = packed_name(call)
    return name.removeprefix(PREFIX) if name is not None else str(call.op.name).rpartition(".")[2]


def _layer(parameter: str) -> str:
    """The layer that a parameter belongs to, from its block on."""
    parts = parameter.removeprefix("model.").split(".")
    if parts[0] == "blocks":
        parts = parts[2:]
    return ".".join(parts[:-1] if parts[-1] in _STORAGE and len(parts) > 1 else parts)


def _closed(section: _Open) -> Section:
    reached = {section.exit}
    for step in reversed(section.steps):
        if step.gives in reached:
            reached.update(step.takes)
    steps = [step for step in section.steps if step.gives in reached]
    rows = []
    seen: Counter[str] = Counter()
    for value, (name, anchor) in sorted(section.names.items()):
        if value in reached:
            seen[name] += 1
            rows.append(Row(f"{name} {seen[name]}" if seen[name] > 1 else name, anchor, value))
    return Section(
        section.block,
        section.entry,
        section.entry_dtype,
        section.exit,
        tuple(steps),
        tuple(rows),
    )


class _Function:
    """A call as a function of its own: of values, and of parameters as they are stored."""

    def __init__(self, reader: _Reader, call: relax.Call) -> None:
        self.reader = reader
        self.builder = relax.BlockBuilder()
        self.known: dict[relax.Var, relax.Var] = {}
        self.value_params: dict[int, relax.Var] = {}
        self.weight_params: dict[str, relax.Var] = {}
        self._collect(call)
        params = [*self.value_params.values(), *self.weight_params.values()]
        with self.builder.function("step", params):
            with self.builder.dataflow():
                out = self.builder.emit_output(self._rebuilt(call))
            self.builder.emit_func_output(out)
        self.function = self.builder.finalize()["step"].without_attr("global_symbol")
        self.takes = tuple(self.value_params)
        self.weights = tuple(self.weight_params)

    def _collect(self, call: relax.Call) -> None:
        for var in _variables(call):
            if var in self.reader.values:
                value = self.reader.values[var]
                if value not in self.value_params:
                    self.value_params[value] = relax.Var(f"x{len(self.value_params)}", var.ty)
                self.known[var] = self.value_params[value]
            elif var in self.reader.stored:
                name = self.reader.stored[var]
                if name not in self.weight_params:
                    self.weight_params[name] = relax.Var(f"w{len(self.weight_params)}", var.ty)
                self.known[var] = self.weight_params[name]
            else:
                self._collect(self.reader.expressions[var])

    def _rebuilt(self, call: relax.Call) -> relax.Call:
        args = [self._argument(arg) for arg in call.args]
        return relax.Call(call.op, args, call.attrs, call.ty_args)

    def _argument(self, arg: relax.Expr) -> relax.Expr:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._argument(field) for field in arg.fields])
        if not isinstance(arg, relax.Var):
            return arg
        if arg not in self.known:
            expression = self.reader.expressions[arg]
            self.known[arg] = self.builder.emit(self._rebuilt(expression))
        return self.known[arg]
