"""Lets our functions take a CPU's weights packed, and adds the functions that pack them.

Stock's functions keep stock's parameters. Every weight of float32 products becomes one packed
tensor, whatever it is stored as, and the parts that it is a weight of say so, and what they compute
in: `arithmetic`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import tvm
from tvm import IRModule, relax
from tvm.target import Target

from mlc_rwkv_world.artifact.abi import OURS, PACK
from mlc_rwkv_world.compiler.passes.rewrite import Rewriter
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32
from mlc_rwkv_world.kernels.cpu.packed_weight import pack, packed
from mlc_rwkv_world.kernels.emitter import tensor_type
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.signature import Signature, TensorType, stored_types
from mlc_rwkv_world.model.parts import Part, read
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_names import name_of

# What the pass leaves for the library's metadata, as an attribute of the module.
PACKED_PARAMS = "rwkv_world_packed_params"

# The parameters in which a weight is stored, by number.
Sources = tuple[int, ...]


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """`names` are those of the parameters, in order.

    `arithmetic` is what the products of each function compute in, float32 where it does not say:
    with "int8" quantized weights are multiplied as bytes; where a function has "bfloat16", plain
    weights become bfloat16 for all. The blocks `exact` compute in float32 in every function.
    """

    def __init__(
        self,
        target: Target,
        names: Sequence[str],
        arithmetic: Mapping[str, str],
        exact: Iterable[int] = (),
    ) -> None:
        self.target = target
        self.names = names
        self.arithmetic = arithmetic
        self.narrow = BFLOAT16 in arithmetic.values()
        self.exact = frozenset(exact)

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        found = {
            name_of(gvar): _Uses(func)
            for gvar, func in mod.functions_items()
            if isinstance(func, relax.Function) and name_of(gvar).startswith(OURS)
        }
        weights = _packable(list(found.values()))
        if not weights:
            return mod
        types = next(iter(found.values())).types
        exact = {
            sources
            for uses in found.values()
            for part, weights_of in uses.products
            if part.block in self.exact
            for sources in weights_of
        }
        forms = {
            sources: _form(stored, types[sources[0]], self.narrow and sources not in exact)
            for sources, stored in sorted(weights.items())
        }
        layout = _Layout.of(types, forms)
        packer = _Packer(mod, found, layout, self)
        mod = packer.run()
        entries = [
            {
                "name": self.names[index],
                "shape": list(ty.shape),
                "dtype": ty.dtype,
                "from": [self.names[source] for source in layout.sources[place]],
                "pack": packer.functions.get(layout.maker(place), ""),
            }
            for place, (index, ty) in enumerate(zip(layout.kept, layout.types, strict=True))
        ]
        return mod.with_attr(PACKED_PARAMS, json.dumps(entries))

    def arithmetic_of(self, function: str, part: Part) -> str:
        """What the products of a part compute in."""
        chosen = self.arithmetic.get(function, FLOAT32)
        return FLOAT32 if part.block in self.exact else chosen


def _inner(stored: Stored, first: TensorType) -> int:
    """How long the rows of a weight are whose first tensor in the shards has this type."""
    return first.static(1) * stored.per_element


def _form(stored: Stored, first: TensorType, narrow: bool) -> Stored:
    form = packed(stored, narrow=narrow and _inner(stored, first) % 2 == 0)
    assert form is not None
    return form


@dataclasses.dataclass(frozen=True)
class _Maker:
    """A function that packs: what it takes and gives, and in which form."""

    stored: tuple[TensorType, ...]
    out: TensorType
    form: Stored


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The parameters of our functions: those that are kept, and in which types.

    `stored` are the types of stock's; `sources` what each one is made of, `forms` the packed form
    of those that are made.
    """

    stored: Sequence[TensorType]
    kept: Sequence[int]
    types: Sequence[TensorType]
    sources: Sequence[Sources]
    forms: Mapping[Sources, Stored]

    @classmethod
    def of(cls, types: Sequence[TensorType], forms: Mapping[Sources, Stored]) -> _Layout:
        first = {sources[0]: sources for sources in forms}
        dropped = {index for sources in forms for index in sources[1:]}
        kept = [index for index in range(len(types)) if index not in dropped]
        sources = [first.get(index, (index,)) for index in kept]
        new = [types[index] for index in kept]
        for place, one in enumerate(sources):
            if one in forms:
                rows, inner = new[place].static(0), _inner(forms[one], new[place])
                (new[place],) = stored_types(forms[one], rows, inner)
        return cls(types, kept, new, sources, forms)

    def place(self, sources: Sources) -> int:
        """Where what is made of these parameters stands."""
        return self.kept.index(sources[0])

    def maker(self, place: int) -> _Maker | None:
        """What makes a parameter; None where it is its one source."""
        sources = self.sources[place]
        if sources not in self.forms:
            return None
        stored = tuple(self.stored[source] for source in sources)
        return _Maker(stored, self.types[place], self.forms[sources])


class _Uses:
    """What one function does with its parameters, its last argument."""

    def __init__(self, func: relax.Function) -> None:
        self.params = func.params[-1]
        self.types = [tensor_type(field) for field in self.params.ty.fields]
        self.indices: dict[relax.Var, int] = {}
        # The parts with weights, and the parameters of each weight.
        self.products: list[tuple[Part, list[Sources]]] = []
        # Parameters that anything else reads.
        self.others: set[int] = set()
        for block in func.body.blocks:
            for binding in block.bindings:
                self._read(binding.var, binding.value)

    def _read(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(self.params):
            self.indices[var] = int(value.index)
            return
        used = [self.indices[v] for v in relax.analysis.free_vars(value) if v in self.indices]
        part = read(value)
        weights = [] if part is None else self.weights(part)
        if part is not None and weights:
            self.products.append((part, weights))
        inside = {index for sources in weights for index in sources}
        self.others.update(index for index in used if index not in inside)

    def weights(self, part: Part) -> list[Sources]:
        """The parameters of each weight of a part whose products are float32, else nothing."""
        if not part.weights or part.compute != FLOAT32:
            return []
        return [tuple(self.indices[expr] for expr in part.args[role]) for role in part.weights]


def _packable(found: Sequence[_Uses]) -> dict[Sources, Stored]:
    """Weights with a packed form that every function uses in float32 products only."""
    weights = {
        one: stored
        for uses in found
        for part, sources in uses.products
        for one, stored in zip(sources, part.weights.values(), strict=True)
    }
    refused = {index for uses in found for index in uses.others}
    # A part's weights are packed together or not at all.
    for uses in found:
        for part, sources in uses.products:
            if any(packed(stored) is None for stored in part.weights.values()):
                refused.update(index for one in sources for index in one)
    return {one: stored for one, stored in weights.items() if not refused.intersection(one)}


class _Packer(Rewriter):
    def __init__(
        self, mod: IRModule, found: Mapping[str, _Uses], layout: _Layout, chosen: PackWeights
    ) -> None:
        super().__init__(mod)
        self.found = found
        self.layout = layout
        self.chosen = chosen
        # The functions that pack, by what they take and give.
        self.functions: dict[_Maker | None, str] = {}
        self._name = ""
        self._params: relax.Var | None = None

    def run(self) -> IRModule:
        for place in range(len(self.layout.kept)):
            maker = self.layout.maker(place)
            if maker is not None and maker not in self.functions:
                self.functions[maker] = f"{PACK}_{len(self.functions)}"
                self._add_pack(self.functions[maker], maker)
        return super().run()

    def parameters(self, name: str, func: relax.Function) -> list[relax.Var]:
        self._name, self._params = name, None
        if name not in self.found:
            return list(func.params)
        fields = [relax.TensorType(list(t.shape), t.dtype) for t in self.layout.types]
        self._params = relax.Var("packed_params", relax.TupleType(fields))
        return [*func.params[:-1], self._params]

    def binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if self._params is None:
            return super().binding(var, value)
        uses = self.found[self._name]
        if var in uses.indices:
            sources: Sources = (uses.indices[var],)
            kept = sources in self.layout.sources and sources not in self.layout.forms
            # Nothing but the parts below takes what is packed.
            return self._item(sources, name_of(var)) if kept else var
        part = read(value)
        weights = uses.weights(part) if part is not None else []
        if part is None or not weights or weights[0] not in self.layout.forms:
            return super().binding(var, value)
        made = dict(zip(part.weights, weights, strict=True))
        args = {
            role: (self._item(made[role], role),)
            if role in made
            else tuple(map(self.substituted, exprs))
            for role, exprs in part.args.items()
        }
        forms = {role: str(self.layout.forms[sources]) for role, sources in made.items()}
        arithmetic = self.chosen.arithmetic_of(self._name, part)
        attrs = {**part.attrs, "weights": forms, "arithmetic": arithmetic}
        return self.emit(dataclasses.replace(part, args=args, attrs=attrs).call(), name_of(var))

    def _item(self, sources: Sources, name: str) -> relax.Var:
        return self.emit(relax.TupleGetItem(self._params, self.layout.place(sources)), name)

    def _add_pack(self, name: str, maker: _Maker) -> None:
        stored, ty = maker.stored, maker.out
        signature = Signature(stored, [ty], self.chosen.target, [maker.form])
        kernel = finished(pack(signature))
        gvar = self.builder.add_func(kernel, "pack_weight")
        params = [
            relax.Var(f"stored_{i}", relax.TensorType(list(t.shape), t.dtype))
            for i, t in enumerate(stored)
        ]
        with self.builder.function(name, params):
            with self.builder.dataflow():
                call = relax.call_tir(gvar, params, relax.TensorType(list(ty.shape), ty.dtype))
                out = self.builder.emit_output(self.builder.emit(call))
            self.builder.emit_func_output(out)
