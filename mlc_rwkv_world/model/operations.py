"""The operations that parts decompose into beside Relax's: each has a kernel on every target.

An operation is a Relax call of a packed function whose name starts with `rwkv_world.`. Its types
say all that there is to say of it, and `compiler.passes.ChooseKernels` replaces it by TIR for one
target.

Shapes: T tokens of B sequences, laid one after another; D channels. Sequence b owns the rows
`offsets[b] .. offsets[b + 1]` of a [T, D] tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.model.fields import Span
from mlc_rwkv_world.model.parts import PREFIX
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_names import StringImm

STATE_SET = PREFIX + "state_set"
Shape = Sequence[Any]
TensorSpec = tuple[Shape, str]


def named(
    name: str,
    args: Sequence[Any],
    out: TensorSpec | Sequence[TensorSpec],
    stored: Stored | None = None,
) -> Any:
    """Emits `rwkv_world.<name>(args)`; `out` is one (shape, dtype) or a list of them.

    `stored` says how the weight among the arguments lies; it follows them as text.
    """
    exprs = [arg._expr if isinstance(arg, Tensor) else arg for arg in args]
    if stored is not None:
        exprs.append(StringImm(str(stored)))
    single = isinstance(out[-1], str)
    specs: Sequence[Any] = [out] if single else out
    types = [relax.TensorType(list(shape), dtype) for shape, dtype in specs]
    call = relax.call_dps_packed(PREFIX + name, exprs, out_ty=types[0] if single else types)
    return op.wrap_nested(call, name)


def embedding(tensors: Sequence[Tensor], stored: Stored, ids: Tensor, width: int) -> Tensor:
    """Rows `ids` of a stored embedding, float32 [T, width]."""
    return named("embedding", [*tensors, ids], ((ids.shape[0], width), "float32"), stored)


def token_shift(x: Tensor, last: Tensor, offsets: Tensor) -> Tensor:
    """The row before each row of x [T, D]; a sequence's first row gets `last[b]` ([B, D])."""
    return named("token_shift", [x, last, offsets], (x.shape, x.dtype))


def last_token(x: Tensor, offsets: Tensor, count: Any) -> Tensor:
    """The last row of each of `count` sequences, [B, D]."""
    return named("last_token", [x, offsets], ((count, x.shape[1]), x.dtype))


def state_get(pool: Tensor, slots: Tensor, layer: int, span: Span) -> Tensor:
    """A field of layer `layer` of the states that are read; see `kernels.common.state`.

    [B, D], or [B, rows, D] where it has several rows.
    """
    index = [relax.prim_value(layer), relax.prim_value(span.row)]
    out = ((slots.shape[0], *span.shape(pool.shape[3])), "float32")
    return named("state_get", [pool, slots, *index], out)


def state_set(pool: Tensor, slots: Tensor, layer: int, span: Span, value: Tensor) -> Tensor:
    """Writes a field, of the shape `state_get` gives, into the states that are written.

    The result is the same pool, and has to be used in place of `pool` from then on, which keeps the
    writes in order.
    """
    call = relax.call_pure_packed(
        STATE_SET,
        pool._expr,
        slots._expr,
        relax.prim_value(layer),
        relax.prim_value(span.row),
        value._expr,
        ty_args=[relax.TensorType(pool.shape, pool.dtype)],
    )
    return op.wrap_nested(call, "state_set")
