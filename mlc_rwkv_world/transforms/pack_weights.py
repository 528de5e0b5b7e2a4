"""Lets our functions take a CPU's weights packed, and adds the functions that pack them.

Stock's functions keep stock's parameters. Every weight of a float32 product becomes one packed
tensor, whatever it is stored as, and `linear(x, stored)` becomes `linear_packed(x, packed)`.
Where a plain weight is packed as bfloat16, the product rounds x too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import tvm
from tvm import IRModule, relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels.packed_weight import pack, packed
from mlc_rwkv_world.kernels.signature import Signature, TensorType, stored_types
from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END, LINEAR_PACKED, PREFIX
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.transforms.calls import (
    packed_name,
    plain,
    stored_in,
    tensor_type,
    with_root_block,
)
from mlc_rwkv_world.tvm_names import StringImm, name_of

# What the pass leaves for the library's metadata, as an attribute of the module.
PACKED_PARAMS = "rwkv_world_packed_params"
OURS = "rwkv_world_"
_PACK = OURS + "pack"
_MATMUL = Op.get("relax.matmul")
_PERMUTE_DIMS = Op.get("relax.permute_dims")
_ASTYPE = Op.get("relax.astype")
_DEQUANTIZE = PREFIX + "dequantize"


@dataclasses.dataclass(frozen=True)
class _Product:
    """A matmul with a weight that is stored in these parameters, and the values between.

    `stored` says how they hold it; `block` is the block that it is in, if any.
    """

    result: relax.Var
    x: relax.Expr
    sources: tuple[int, ...]
    stored: Stored
    between: tuple[relax.Var, ...]
    block: int | None


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """`names` are those of the parameters, in order.

    With `narrow`, plain weights become bfloat16, except in the blocks `exact`.
    """

    def __init__(
        self,
        target: Target,
        names: Sequence[str],
        *,
        narrow: bool = False,
        exact: Iterable[int] = (),
    ) -> None:
        self.target = target
        self.names = names
        self.narrow = narrow
        self.exact = frozenset(exact)

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        ours = {
            gvar: func
            for gvar, func in mod.functions_items()
            if isinstance(func, relax.Function) and name_of(gvar).startswith(OURS)
        }
        found = {gvar: _Graph(func) for gvar, func in ours.items()}
        weights = _packable(list(found.values()))
        if not weights:
            return mod
        types = next(iter(found.values())).types
        exact = {
            product.sources
            for graph in found.values()
            for product in graph.products.values()
            if product.block in self.exact
        }
        forms = {
            sources: _form(stored, types[sources[0]], self.narrow and sources not in exact)
            for sources, stored in weights.items()
        }
        first = {sources[0]: sources for sources in forms}
        dropped = {index for sources in forms for index in sources[1:]}
        kept = [index for index in range(len(types)) if index not in dropped]
        entries = []
        builder = relax.BlockBuilder(mod)
        functions: dict[tuple[object, ...], str] = {}
        for index in kept:
            sources = first.get(index, (index,))
            ty = _packed_type(forms[sources], types[index]) if index in first else types[index]
            made_by = ""
            if index in first:
                stored = [types[source] for source in sources]
                form = forms[sources]
                key = (form, *((t.shape, t.dtype) for t in stored))
                if key not in functions:
                    functions[key] = f"{_PACK}_{len(functions)}"
                    self._add_pack(builder, functions[key], stored, ty, form)
                made_by = functions[key]
            entries.append(
                {
                    "name": self.names[index],
                    "shape": list(ty.shape),
                    "dtype": ty.dtype,
                    "from": [self.names[source] for source in sources],
                    "pack": made_by,
                }
            )
        mod = builder.get()
        place = {index: position for position, index in enumerate(kept)}
        new_types = [
            _packed_type(forms[first[i]], types[i]) if i in first else types[i] for i in kept
        ]
        for gvar, graph in found.items():
            mod[gvar] = _Rewriter(mod, graph, place, new_types, forms).run()
        return mod.with_attr(PACKED_PARAMS, json.dumps(entries))

    def _add_pack(
        self,
        builder: relax.BlockBuilder,
        name: str,
        stored: Sequence[TensorType],
        ty: TensorType,
        form: Stored,
    ) -> None:
        kernel = with_root_block(pack(Signature(stored, [ty], self.target, [form])))
        gvar = builder.add_func(kernel, "pack_weight")
        params = [
            relax.Var(f"stored_{i}", relax.TensorType(list(t.shape), t.dtype))
            for i, t in enumerate(stored)
        ]
        with builder.function(name, params):
            with builder.dataflow():
                call = relax.call_tir(gvar, params, relax.TensorType(list(ty.shape), ty.dtype))
                out = builder.emit_output(builder.emit(call))
            builder.emit_func_output(out)


def _inner(stored: Stored, first: TensorType) -> int:
    """How long the rows of a weight are whose first tensor in the shards has this type."""
    return first.static(1) * stored.per_element


def _form(stored: Stored, first: TensorType, narrow: bool) -> Stored:
    form = packed(stored, narrow=narrow and _inner(stored, first) % 2 == 0)
    assert form is not None
    return form


def _packed_type(form: Stored, first: TensorType) -> TensorType:
    (ty,) = stored_types(form, first.static(0), _inner(form, first))
    return ty


class _Graph:
    """What one function does with its parameters, its last argument."""

    def __init__(self, func: relax.Function) -> None:
        self.func = func
        self.params = func.params[-1]
        self.types = [tensor_type(field) for field in self.params.ty.fields]
        self.values = {
            binding.var: binding.value for block in func.body.blocks for binding in block.bindings
        }
        self.products: dict[relax.Var, _Product] = {}
        block: int | None = None
        for var, value in self.values.items():
            name = packed_name(value)
            if name == BLOCK_BEGIN:
                block = int(value.args[2].value)
            elif name == BLOCK_END:
                block = None
            product = self._product(var, value, block)
            if product is not None:
                self.products[var] = product

    def index(self, expr: relax.Expr) -> int | None:
        """Which parameter an expression is."""
        value = self.values.get(expr) if isinstance(expr, relax.Var) else expr
        if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(self.params):
            return int(value.index)
        return None

    def uses(self) -> Iterator[tuple[relax.Var, int]]:
        """Every use of a parameter, by the variable that the use defines."""
        for var, value in self.values.items():
            if not isinstance(value, relax.TupleGetItem):
                for used in _variables(value):
                    index = self.index(used)
                    if index is not None:
                        yield var, index

    def _product(self, var: relax.Var, value: relax.Expr, block: int | None) -> _Product | None:
        if not (isinstance(value, relax.Call) and value.op == _MATMUL):
            return None
        x, transposed = value.args
        if str(x.ty.dtype) != "float32" or str(value.ty.dtype) != "float32" or len(x.ty.shape) != 2:
            return None
        permute = self.values.get(transposed)
        if not (isinstance(permute, relax.Call) and permute.op == _PERMUTE_DIMS):
            return None
        weight = permute.args[0]
        between = [transposed]
        value = self.values.get(weight)
        if packed_name(value) == _DEQUANTIZE:
            (tensors, (stored,)), between = stored_in(value.args[1].fields), [*between, weight]
        elif isinstance(value, relax.Call) and value.op == _ASTYPE:
            tensors, stored, between = [value.args[0]], plain(value.args[0]), [*between, weight]
        else:
            tensors, stored = [weight], plain(weight)
        indices = [self.index(expr) for expr in tensors]
        if any(index is None for index in indices):
            return None
        sources = tuple(index for index in indices if index is not None)
        return _Product(var, x, sources, stored, tuple(between), block)


def _variables(expr: relax.Expr) -> list[relax.Var]:
    return list(relax.analysis.free_vars(expr))


def _packable(graphs: Sequence[_Graph]) -> dict[tuple[int, ...], Stored]:
    """Weights with a packed form that every function uses in float32 products only."""
    products = [p for graph in graphs for p in graph.products.values()]
    weights = {p.sources: p.stored for p in products if packed(p.stored) is not None}
    refused: set[int] = set()
    for graph in graphs:
        inside = {var for p in graph.products.values() for var in (p.result, *p.between)}
        refused |= {index for var, index in graph.uses() if var not in inside}
    return {
        sources: stored for sources, stored in weights.items() if not refused.intersection(sources)
    }


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(
        self,
        mod: IRModule,
        graph: _Graph,
        place: dict[int, int],
        types: Sequence[TensorType],
        packed: dict[tuple[int, ...], Stored],
    ) -> None:
        super().__init__(mod)
        self.graph = graph
        self.place = place
        fields = [relax.TensorType(list(t.shape), t.dtype) for t in types]
        self.params = relax.Var("packed_params", relax.TupleType(fields))
        self.packed = packed
        self.products = {var: p for var, p in graph.products.items() if p.sources in packed}
        self.skipped = {var for p in self.products.values() for var in p.between}
        self.replaced = {index for sources in packed for index in sources}

    def run(self) -> relax.Function:
        """The function with packed weights."""
        func = self.graph.func
        body = self.visit_expr(func.body)
        params = [*func.params[:-1], self.params]
        return relax.Function(params, body, func.ret_ty, is_pure=func.is_pure, attrs=func.attrs)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.skipped:
            return
        product = self.products.get(binding.var)
        index = self.graph.index(binding.value)
        if product is not None:
            weight = self.builder_.emit(
                relax.TupleGetItem(self.params, self.place[product.sources[0]])
            )
            form = StringImm(str(self.packed[product.sources]))
            args = [self.visit_expr(product.x), weight, form]
            call = relax.call_dps_packed(LINEAR_PACKED, args, out_ty=binding.var.ty)
            self._emit(binding, call)
        elif index is None:
            super().visit_var_binding_(binding)
        elif index not in self.replaced:
            self._emit(binding, relax.TupleGetItem(self.params, self.place[index]))

    def _emit(self, binding: relax.VarBinding, value: relax.Expr) -> None:
        new = self.builder_.emit(value, name_hint=name_of(binding.var))
        self.set_var_remap(binding.var, new)
