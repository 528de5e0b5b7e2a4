"""How a part becomes kernels: what a rule for a target is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from tvm import relax, tirx
from tvm.relax.frontend.nn import Tensor
from tvm.target import Target

from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.model.parts import Part
from mlc_rwkv_world.storage import Stored


class Emitter(Protocol):
    """Emits calls of kernels for one target."""

    target: Target

    def call(
        self,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[Tensor | int],
        outs: Sequence[TensorType],
        *,
        state: Tensor | None = None,
        stored: Sequence[Stored] = (),
        inputs: Inputs = Inputs.FLOAT32,
        **options: Hashable,
    ) -> list[Tensor]:
        """Calls the kernel `build(signature, **options)`; its results of the types `outs`.

        `stored` and `inputs` are the signature's. Where it updates `state`, one of `args`, in
        place, the state is the last result.
        """


# Emits kernels for a part, and gives its results; None where they do not suit it.
Rule = Callable[[Part, Emitter], Sequence[Tensor] | None]


def type_of(tensor: Tensor) -> TensorType:
    """A tensor's type as kernels are told it."""
    return tensor_type(tensor._expr.ty)


def tensor_type(ty: relax.TensorType) -> TensorType:
    """A Relax type as kernels are told it."""
    dims: list[Any] = [int(d) if isinstance(d, tirx.IntImm) else d for d in ty.shape.values]
    return TensorType(tuple(dims), str(ty.dtype))
