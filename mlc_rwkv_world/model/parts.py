"""Parts: the operations that a model consists of, as calls in an exported function.

A part is a Relax call of a packed function `rwkv_world.<name>` whose last argument is a string: its
attributes as JSON. They say what the call alone does not show: which argument plays which role, the
block that it belongs to, the type that it computes in, how its weights lie. Passes read and change
them; `compiler.passes.ChooseKernels` replaces each part by kernels that suit, or else by its
decomposition: what it means, in operators and smaller parts.

Attributes that every part has: `args`, how many tensors each role takes, in order; `weights`, by
role how the weights of products lie, as texts of `Stored`. That most have: `block`; `compute`, what
it computes in, float32 or float16. A part that reads and writes fields of the recurrent
state has `rows`, the first row of each, `heights`, how many rows each has, and `layer`; its last
result is the pool, or its last ones are the new fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from tvm import relax
from tvm.ir import Op
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_names import StringImm

PREFIX = "rwkv_world."
# The role of the fields of a state that is not in our pool.
ROWS = "old_rows"

_DPS_PACKED = Op.get("relax.call_dps_packed")

# What a smaller part has of the part that it belongs to.
_INHERITED = ("block", "compute", "arithmetic")

# A tensor, a layer, or several tensors of one role.
Tensors: TypeAlias = Any
TensorSpec = tuple[Sequence[Any], str]


@dataclasses.dataclass(frozen=True)
class Part:
    """One part as an exported function holds it: tensors by role, attributes, types of results."""

    name: str
    args: Mapping[str, tuple[relax.Expr, ...]]
    attrs: Mapping[str, Any]
    outs: tuple[relax.TensorType, ...]

    def __contains__(self, role: str) -> bool:
        return bool(self.args.get(role))

    def tensors(self, role: str) -> list[Tensor]:
        """The tensors of a role, none where the part lacks it."""
        return [Tensor(_expr=expr) for expr in self.args.get(role, ())]

    def tensor(self, role: str) -> Tensor:
        """The only tensor of a role."""
        (found,) = self.tensors(role)
        return found

    @cached_property
    def block(self) -> int | None:
        """The block that it belongs to, None for what is outside of all."""
        return self.attrs.get("block")

    @property
    def compute(self) -> str:
        """The type that its products compute in."""
        return str(self.attrs["compute"])

    @property
    def weights(self) -> dict[str, Stored]:
        """How the weights of its products lie, by role."""
        texts: dict[str, str] = self.attrs.get("weights", {})
        return {role: Stored.parse(text) for role, text in texts.items()}

    @property
    def packed(self) -> str | None:
        """What products with its packed weights compute in; None where they lie as stored."""
        return self.attrs.get("arithmetic")

    def smaller(
        self,
        name: str,
        args: Mapping[str, Tensors],
        outs: Sequence[TensorSpec],
        **attrs: Any,
    ) -> Part:
        """A part that this one consists of, of the same block, compute type and arithmetic.

        A name among `args` stands for the tensors of that role of this part; where they are a
        weight's, they are a weight of the smaller part.
        """
        texts: dict[str, str] = self.attrs.get("weights", {})
        names = {role: given for role, given in args.items() if isinstance(given, str)}
        weights = {role: texts[name] for role, name in names.items() if name in texts}
        given = {role: self.tensors(t) if isinstance(t, str) else t for role, t in args.items()}
        kept = {key: self.attrs[key] for key in _INHERITED if key in self.attrs}
        return make(name, given, outs, **kept, weights=weights, **attrs)

    def call(self) -> relax.Call:
        """The part as a call."""
        counts = {role: len(exprs) for role, exprs in self.args.items() if exprs}
        text = StringImm(json.dumps({"args": counts, **self.attrs}))
        flat = [expr for exprs in self.args.values() for expr in exprs]
        types = list(self.outs)
        return relax.call_dps_packed(
            PREFIX + self.name, [*flat, text], out_ty=types if len(types) > 1 else types[0]
        )

    def emit(self) -> list[Tensor]:
        """Emits the call; its results."""
        found = op.wrap_nested(self.call(), self.name.rpartition(".")[2])
        return list(found) if isinstance(found, tuple) else [found]


def make(
    name: str,
    args: Mapping[str, Tensors],
    outs: Sequence[TensorSpec],
    **attrs: Any,
) -> Part:
    """A part of these tensors by role; `outs` are shapes and dtypes of its results.

    A layer among the arguments stands for its tensors; one that is `stored` is a weight.
    """
    exprs = {
        role: tuple(tensor._expr for tensor in _listed(given))
        for role, given in args.items()
        if given is not None
    }
    weights = {role: str(given.stored) for role, given in args.items() if hasattr(given, "stored")}
    types = tuple(relax.TensorType(list(shape), dtype) for shape, dtype in outs)
    return Part(name, exprs, {"weights": weights, **attrs}, types)


def _listed(given: Tensors) -> Sequence[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    found: Sequence[Tensor] = given.tensors() if hasattr(given, "tensors") else given
    return found


def read(expr: relax.Expr) -> Part | None:
    """The part that a call is; None for any other expression."""
    if not (isinstance(expr, relax.Call) and expr.op == _DPS_PACKED):
        return None
    name, fields = str(expr.args[0].global_symbol), list(expr.args[1].fields)
    text = str(fields[-1].value) if fields and isinstance(fields[-1], StringImm) else ""
    if not (name.startswith(PREFIX) and text.startswith("{")):
        return None
    attrs = json.loads(text)
    args, at = {}, 0
    for role, count in attrs.pop("args").items():
        args[role] = tuple(fields[at : at + count])
        at += count
    (out,) = expr.ty_args
    outs = tuple(out.fields) if isinstance(out, relax.TupleType) else (out,)
    return Part(name.removeprefix(PREFIX), args, attrs, outs)
