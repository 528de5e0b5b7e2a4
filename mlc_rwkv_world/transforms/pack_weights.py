"""Lets our functions take a CPU's weights packed, and adds the functions that pack them.

Stock's functions keep stock's parameters. Every weight of float32 products becomes one packed
tensor, whatever it is stored as, and the parts that it is a weight of say so, and what they compute
in: `arithmetic`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tvm
from tvm import IRModule, relax
from tvm.target import Target

from mlc_rwkv_world.kernels.arithmetic_cpu import BFLOAT16, FLOAT32, INT8
from mlc_rwkv_world.kernels.emitter import tensor_type
from mlc_rwkv_world.kernels.packed_weight import pack, packed_type
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.models.parts import Part, read
from mlc_rwkv_world.transforms.calls import with_root_block
from mlc_rwkv_world.transforms.rewrite import Rewriter
from mlc_rwkv_world.tvm_names import name_of

# What the pass leaves for the library's metadata, as an attribute of the module.
PACKED_PARAMS = "rwkv_world_packed_params"
OURS = "rwkv_world_"
_PACK = OURS + "pack"

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
        packed = {
            sources: self._packed(sources, types, self.narrow and sources not in exact)
            for sources in sorted(weights)
        }
        layout = _Layout.of(types, packed)
        packer = _Packer(mod, found, layout, self)
        mod = packer.run()
        entries = [
            {
                "name": self.names[index],
                "shape": list(ty.shape),
                "dtype": ty.dtype,
                "from": [self.names[source] for source in layout.sources[place]],
                "pack": packer.functions.get(layout.key(place), ""),
            }
            for place, (index, ty) in enumerate(zip(layout.kept, layout.types, strict=True))
        ]
        return mod.with_attr(PACKED_PARAMS, json.dumps(entries))

    @staticmethod
    def _packed(sources: Sources, types: Sequence[TensorType], narrow: bool) -> TensorType:
        stored = [types[index] for index in sources]
        inner = stored[0].static(1) if len(stored) == 1 else stored[1].static(1) * 32
        return packed_type(stored, inner, narrow=narrow)

    def attrs(self, function: str, part: Part, weights: Sequence[TensorType]) -> dict[str, str]:
        """What a part says of its products, whose packed weights have these types."""
        chosen = self.arithmetic.get(function, FLOAT32)
        bytes_ = chosen == INT8 and part.block not in self.exact
        as_bytes = bytes_ and all(ty.dtype == "uint32" for ty in weights)
        return {"arithmetic": INT8 if as_bytes else FLOAT32}


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The parameters of our functions: those that are kept, and in which types.

    `stored` are the types of stock's; `sources` what each one is made of, `packed` whether it is
    another tensor than its one source.
    """

    stored: Sequence[TensorType]
    kept: Sequence[int]
    types: Sequence[TensorType]
    sources: Sequence[Sources]
    packed: frozenset[Sources]

    @classmethod
    def of(cls, types: Sequence[TensorType], packed: Mapping[Sources, TensorType]) -> _Layout:
        first = {sources[0]: sources for sources in packed}
        dropped = {index for sources in packed for index in sources[1:]}
        kept = [index for index in range(len(types)) if index not in dropped]
        sources = [first.get(index, (index,)) for index in kept]
        new = [packed.get(one, types[index]) for one, index in zip(sources, kept, strict=True)]
        return cls(types, kept, new, sources, frozenset(packed))

    def place(self, sources: Sources) -> int:
        """Where what is made of these parameters stands."""
        return self.kept.index(sources[0])

    def key(self, place: int) -> tuple[TensorType, ...]:
        """What the function that makes a parameter takes and gives; empty where there is none."""
        sources = self.sources[place]
        if sources not in self.packed:
            return ()
        return (*(self.stored[source] for source in sources), self.types[place])


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


def _packable(found: Sequence[_Uses]) -> Iterator[Sources] | set[Sources]:
    """Weights that every function uses in float32 products only."""
    weights = {one for uses in found for _, sources in uses.products for one in sources}
    refused = {index for uses in found for index in uses.others}
    return {sources for sources in weights if not refused.intersection(sources)}


class _Packer(Rewriter):
    def __init__(
        self, mod: IRModule, found: Mapping[str, _Uses], layout: _Layout, chosen: PackWeights
    ) -> None:
        super().__init__(mod)
        self.found = found
        self.layout = layout
        self.chosen = chosen
        # The functions that pack, by what they take and give.
        self.functions: dict[tuple[TensorType, ...], str] = {}
        self._name = ""
        self._params: relax.Var | None = None

    def run(self) -> IRModule:
        for place in range(len(self.layout.kept)):
            key = self.layout.key(place)
            if key and key not in self.functions:
                self.functions[key] = f"{_PACK}_{len(self.functions)}"
                self._add_pack(self.functions[key], key[:-1], key[-1])
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
            kept = sources in self.layout.sources and sources not in self.layout.packed
            # Nothing but the parts below takes what is packed.
            return self._item(sources, name_of(var)) if kept else var
        part = read(value)
        weights = uses.weights(part) if part is not None else []
        if part is None or not weights:
            return super().binding(var, value)
        packed = dict(zip(part.weights, weights, strict=True))
        types = [self.layout.types[self.layout.place(sources)] for sources in weights]
        args = {
            role: (self._item(packed[role], role),)
            if role in packed
            else tuple(map(self.substituted, exprs))
            for role, exprs in part.args.items()
        }
        attrs = {**part.attrs, **self.chosen.attrs(self._name, part, types)}
        return self.emit(dataclasses.replace(part, args=args, attrs=attrs).call(), name_of(var))

    def _item(self, sources: Sources, name: str) -> relax.Var:
        return self.emit(relax.TupleGetItem(self._params, self.layout.place(sources)), name)

    def _add_pack(self, name: str, stored: Sequence[TensorType], ty: TensorType) -> None:
        kernel = with_root_block(pack(Signature(stored, [ty], self.chosen.target)))
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
