"""Puts what surrounds each product of a decode step on CUDA into the product's kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from mlc_rwkv_world.kernels import matvec_cuda
from mlc_rwkv_world.kernels.dot_cuda import Stored
from mlc_rwkv_world.kernels.norm_mix_cuda import norm_mix_step
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.models.operations import PREFIX, STATE_SET
from mlc_rwkv_world.transforms.calls import packed_name, tensor_type, type_key, with_root_block
from mlc_rwkv_world.tvm_names import name_of

_OPS = {
    name: Op.get(f"relax.{name}")
    for name in (
        *("add", "astype", "exp", "matmul", "multiply", "negative", "nn.layer_norm", "nn.relu"),
        *("permute_dims", "sigmoid", "square", "subtract"),
    )
}
_DEQUANTIZE, _STATE_GET, _WKV_STEP = (
    PREFIX + "dequantize",
    PREFIX + "state_get",
    PREFIX + "wkv_step",
)


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
            if isinstance(func, relax.Function):
                fuser.builder_.update_func(gvar, fuser.fuse(func))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


class _Values:
    """What each variable of a function is bound to, and how often it is used."""

    def __init__(self, func: relax.Function) -> None:
        self.bound: dict[relax.Var, relax.Expr] = {}
        self.order: dict[relax.Var, int] = {}
        self.uses: dict[relax.Var, list[relax.Var]] = {}
        for block in func.body.blocks if isinstance(func.body, relax.SeqExpr) else []:
            for binding in block.bindings:
                if isinstance(binding, relax.VarBinding):
                    self.bound[binding.var] = binding.value
                    self.order[binding.var] = len(self.order)
                    for var in relax.analysis.free_vars(binding.value):
                        self.uses.setdefault(var, []).append(binding.var)

    def of(self, expr: relax.Expr) -> relax.Expr:
        """The value behind a variable, through other names for it."""
        while isinstance(expr, relax.Var) and expr in self.bound:
            expr = self.bound[expr]
        return expr

    def named(self, expr: relax.Expr) -> relax.Expr:
        """The first name of what `expr` is."""
        while isinstance(expr, relax.Var) and isinstance(self.bound.get(expr), relax.Var):
            expr = self.bound[expr]
        return expr

    def args(self, expr: relax.Expr, op: str) -> Sequence[relax.Expr] | None:
        """The arguments of the call of `op` that `expr` is, else None."""
        value = self.of(expr)
        return value.args if isinstance(value, relax.Call) and value.op == _OPS[op] else None

    def fields(self, expr: relax.Expr, name: str) -> Sequence[relax.Expr] | None:
        """The arguments of the named operation that `expr` is, else None."""
        value = self.of(expr)
        return list(value.args[1].fields) if packed_name(value) == name else None

    def uncast(self, expr: relax.Expr) -> relax.Expr:
        """`expr` without casts around it."""
        while (args := self.args(expr, "astype")) is not None:
            expr = args[0]
        return self.named(expr)

    def position(self, expr: relax.Expr) -> int:
        """Where in the function `expr` is bound; -1 for its parameters."""
        return self.order.get(expr, -1)

    def users(self, var: relax.Var) -> list[relax.Var]:
        """The variables whose values use `var`, by whatever name."""
        found = []
        for user in self.uses.get(var, []):
            found += self.users(user) if isinstance(self.bound[user], relax.Var) else [user]
        return found


def _index(expr: relax.Expr) -> int:
    """The integer that a layer or a row is given as."""
    return int(getattr(expr, "value", expr))


def _number(expr: relax.Expr) -> float | None:
    """The value of a scalar constant, else None."""
    # TVM 0.26 and 0.27 name it differently.
    held = getattr(expr, "data", None) or getattr(expr, "value", None)
    array = held.numpy() if held is not None and hasattr(held, "numpy") else None
    return float(array) if array is not None and array.ndim == 0 else None


Product = tuple[relax.Expr, list[relax.Expr]]


@mutator
class _Fuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target
        self._kernels: dict[tuple[object, ...], relax.GlobalVar] = {}
        self._instead: dict[relax.Var, relax.Expr] = {}
        self._at: dict[relax.Var, list[Callable[[], None]]] = {}

    def fuse(self, func: relax.Function) -> relax.Function:
        self._instead, self._at = {}, {}
        values = _Values(func)
        for var, value in values.bound.items():
            if packed_name(value) == STATE_SET:
                self._norm_mix(values, var)
            if packed_name(value) == _WKV_STEP:
                self._time_mix(values, var)
        for var in values.bound:
            self._channel_mix(values, var) or self._output(values, var)
            self._activated(values, var)
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

    def _norm_mix(self, values: _Values, written: relax.Var) -> None:
        _, before, layer, row, value = values.bound[written].args
        normal = values.named(value)
        norm = values.args(normal, "nn.layer_norm")
        if norm is None or not isinstance(normal, relax.Var):
            return
        if values.position(values.named(before)) > values.position(normal):
            return
        eps = float(values.of(normal).attrs.epsilon)
        mixed: list[relax.Var] = []
        ratios: list[relax.Expr] = []
        for user in values.users(normal):
            if user.same_as(written):
                continue
            found = self._mix(values, user, normal, layer, row)
            if found is None:
                return
            mixed.append(found[0])
            ratios.append(found[1])
        if len(mixed) not in (2, 3) or len({str(var.ty.dtype) for var in mixed}) != 1:
            return
        widened = values.args(norm[0], "astype")
        x = widened[0] if widened else norm[0]

        def emit() -> None:
            state = self.visit_expr(before)
            args = [self.visit_expr(arg) for arg in (x, *norm[1:3], *ratios)]
            outs = [var.ty for var in mixed]
            func = self._kernel("norm_mix_step", norm_mix_step, [*args, state], outs, eps=eps)
            call = relax.call_tir_inplace(
                func,
                relax.Tuple([*args, state, layer, row]),
                [*[-1] * len(outs), len(args)],
                [*outs, state.ty],
            )
            self._emit(call, [*mixed, written])

        self._place(normal, emit, [*mixed, written])

    def _mix(
        self,
        values: _Values,
        product: relax.Var,
        normal: relax.Var,
        layer: relax.Expr,
        row: relax.Expr,
    ) -> tuple[relax.Var, relax.Expr] | None:
        """The variable, cast as it is used, and the ratio of a mix that starts with `product`."""
        args = values.args(product, "multiply")
        sums = values.users(product)
        if args is None or not values.named(args[0]).same_as(normal) or len(sums) != 1:
            return None
        terms = values.args(sums[0], "add")
        other = values.args(terms[1], "multiply") if terms else None
        previous = values.fields(other[0], _STATE_GET) if other else None
        rest = values.args(other[1], "subtract") if other else None
        if not (terms and other and previous and rest):
            return None
        same_row = [_index(i) for i in previous[1:]] == [_index(layer), _index(row)]
        if not same_row or not values.named(rest[1]).same_as(values.named(args[1])):
            return None
        end = sums[0]
        casts = values.users(end)
        if len(casts) == 1 and values.args(casts[0], "astype") is not None:
            end = casts[0]
        return end, args[1]

    def _time_mix(self, values: _Values, step: relax.Var) -> None:
        k, v, decay, first, *rows = values.fields(step, _WKV_STEP) or ()
        outputs = {}
        for user in values.users(step):
            item = values.bound[user]
            if not isinstance(item, relax.TupleGetItem):
                return
            outputs[int(item.index)] = user
        if len(outputs) != 4:
            return
        negated = values.args(decay, "negative")
        raw = values.args(negated[0], "exp") if negated else None
        read = [fields for row in rows if (fields := values.fields(row, _STATE_GET))]
        writes = [values.users(outputs[i]) for i in (1, 2, 3)]
        gated = values.users(outputs[0])
        if raw is None or len(read) != 3 or any(len(w) != 1 for w in writes) or len(gated) != 1:
            return
        sets = [values.bound[w[0]] for w in writes]
        if any(packed_name(call) != STATE_SET for call in sets):
            return
        # a, b, p are rows 1, 2, 3 of one layer, read and written one after another.
        layer = sets[0].args[2]
        for number, (call, fields) in enumerate(zip(sets, read, strict=True), start=1):
            indices = (call.args[2], call.args[3], fields[1], fields[2])
            if [_index(i) for i in indices] != [_index(layer), number] * 2:
                return
        if not all(sets[i].args[1].same_as(writes[i - 1][0]) for i in (1, 2)):
            return
        factors = values.args(gated[0], "multiply")
        gate = values.args(factors[0], "sigmoid") if factors else None
        products = self._products(values, [k, v, gate[0]], same=True) if gate else None
        if products is None:
            return
        end = gated[0]
        casts = values.users(end)
        if len(casts) == 1 and values.args(casts[0], "astype") is not None:
            end = casts[0]
        last = writes[2][0]
        if values.position(end) < values.position(last):
            return
        before = sets[0].args[1]

        def emit() -> None:
            state = self.visit_expr(before)
            parts = [x for x, _ in products] + [w for _, stored in products for w in stored]
            args = [self.visit_expr(arg) for arg in (*parts, raw[0], first)]
            kernel = matvec_cuda.time_mix_step
            func = self._kernel("time_mix_step", kernel, [*args, state], [end.ty])
            call = relax.call_tir_inplace(
                func,
                relax.Tuple([*args, state, layer]),
                [-1, len(args)],
                [end.ty, state.ty],
            )
            self._emit(call, [end, last])

        self._place(last, emit, [end, last])

    def _channel_mix(self, values: _Values, var: relax.Var) -> bool:
        """residual + sigmoid(product) * product, and the halving that may follow."""
        terms = values.args(var, "add") if isinstance(values.bound[var], relax.Call) else None
        factors = values.args(terms[1], "multiply") if terms else None
        gate = values.args(factors[0], "sigmoid") if factors else None
        if not (terms and factors and gate):
            return False
        products = self._products(values, [factors[1], gate[0]], same=False)
        if products is None:
            return False
        end, factor = var, 1.0
        users = values.users(var)
        scaled = values.args(users[0], "multiply") if len(users) == 1 else None
        scale = _number(scaled[1]) if scaled else None
        if scale is not None:
            end, factor = users[0], scale
        args = [arg for x, stored in products for arg in (x, *stored)] + [terms[0]]
        kernel = matvec_cuda.matvec_gated_add
        self._replace("matvec_gated_add", kernel, args, end, factor=factor)
        return True

    def _output(self, values: _Values, var: relax.Var) -> bool:
        """residual + product."""
        terms = values.args(var, "add") if isinstance(values.bound[var], relax.Call) else None
        products = self._products(values, [terms[1]], same=True) if terms else None
        if not (terms and products):
            return False
        x, stored = products[0]
        self._replace("matvec_add", matvec_cuda.matvec_add, [x, *stored, terms[0]], var)
        return True

    def _activated(self, values: _Values, var: relax.Var) -> None:
        """relu(product)^2."""
        squared = values.args(var, "square") if isinstance(values.bound[var], relax.Call) else None
        positive = values.args(squared[0], "nn.relu") if squared else None
        products = self._products(values, [positive[0]], same=True) if positive else None
        if products:
            x, stored = products[0]
            kernel = matvec_cuda.matvec_relu_square
            self._replace("matvec_relu_square", kernel, [x, *stored], var)

    def _products(
        self, values: _Values, exprs: Sequence[relax.Expr], same: bool
    ) -> list[Product] | None:
        """The products that `exprs` are, if the kernels take them together."""
        products = [found for expr in exprs if (found := self._product(values, expr))]
        whole = len(products) == len(exprs)
        return products if whole and self._suitable(products, same) else None

    def _product(self, values: _Values, expr: relax.Expr) -> Product | None:
        """The row and the stored weight, as two tensors, of the product that `expr` is."""
        args = values.args(values.uncast(expr), "matmul")
        permuted = values.args(args[1], "permute_dims") if args else None
        if not (args and permuted):
            return None
        stored = values.fields(permuted[0], _DEQUANTIZE)
        if stored is None:
            cast = values.args(permuted[0], "astype")
            stored = [cast[0] if cast else permuted[0]] * 2
        return args[0], list(stored)

    def _suitable(self, products: Sequence[Product], same: bool) -> bool:
        """Whether the kernels take these products of one row; `same` asks for one storage."""
        kinds = []
        for x, stored in products:
            types = [tensor_type(part.ty) for part in (x, *stored)]
            if types[0].shape[0] != 1:
                return False
            one = Stored.of(types[0], types[1:] if types[1].dtype == "uint32" else types[1:2])
            if not one.can_stream:
                return False
            whole = (one.inner,) if same else ()
            kinds.append((types[0].dtype, one.outer, one.dtype, one.bits, one.scale_dtype, *whole))
        return len(set(kinds)) == 1

    def _replace(
        self,
        name: str,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        end: relax.Var,
        **options: float,
    ) -> None:
        def emit() -> None:
            given = [self.visit_expr(arg) for arg in args]
            func = self._kernel(name, build, given, [end.ty], **options)
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

    def _kernel(
        self,
        name: str,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        outs: Sequence[relax.TensorType],
        **options: float,
    ) -> relax.GlobalVar:
        types: list[TensorType] = [tensor_type(arg.ty) for arg in args]
        results = [tensor_type(out) for out in outs]
        key = (name, *map(type_key, (*types, *results)), *options.items())
        if key not in self._kernels:
            func = build(Signature(types, results, self.target), **options)
            self._kernels[key] = self.builder_.add_func(with_root_block(func), name)
        return self._kernels[key]
