"""The kernels that a pass adds to a module, each once for the types that it is called with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

from tvm import relax, tirx
from tvm.relax.frontend.nn import Tensor
from tvm.target import Target

from mlc_rwkv_world.kernels.emitter import tensor_type
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel to be built; equal to those that differ in dynamic extents alone."""

    build: Callable[..., tirx.PrimFunc]
    types: tuple[object, ...]
    target: str
    options: tuple[tuple[str, Hashable], ...]
    signature: Signature = dataclasses.field(compare=False)


class KernelTable:
    """Kernels for one target in the module of one builder."""

    def __init__(self, builder: relax.BlockBuilder, target: Target) -> None:
        self.target = target
        self._builder = builder
        self._added: dict[_Kernel, relax.GlobalVar] = {}

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
        """Emits a call, see `kernels.emitter.Emitter`."""
        given = [arg._expr if isinstance(arg, Tensor) else relax.prim_value(arg) for arg in args]
        func = self.add(build, given, outs, stored, inputs, **options)
        types = [relax.TensorType(list(out.shape), out.dtype) for out in outs]
        if state is None:
            call = relax.call_tir(func, relax.Tuple(given), types if len(types) > 1 else types[0])
        else:
            place = next(i for i, expr in enumerate(given) if expr.same_as(state._expr))
            indices = [-1] * len(types) + [place]
            call = relax.call_tir_inplace(
                func, relax.Tuple(given), indices, [*types, state._expr.ty]
            )
        result = self._builder.emit(call)
        count = len(types) + (state is not None)
        if count == 1:
            return [Tensor(_expr=result)]
        items = [relax.TupleGetItem(result, index) for index in range(count)]
        return [Tensor(_expr=self._builder.emit(item)) for item in items]

    def add(
        self,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        outs: Sequence[TensorType],
        stored: Sequence[Stored] = (),
        inputs: Inputs = Inputs.FLOAT32,
        /,
        **options: Hashable,
    ) -> relax.GlobalVar:
        """`build(signature, **options)` for these arguments, of which only the tensors count.

        `stored` and `inputs` are the signature's. Calls that differ in dynamic extents alone share
        one kernel.
        """
        tensors = [tensor_type(arg.ty) for arg in args if isinstance(arg.ty, relax.TensorType)]
        # What divides arguments from results matters too.
        types: tuple[object, ...] = (*map(_type_key, tensors), (), *map(_type_key, outs))
        types += (tuple(stored), inputs)
        signature = Signature(tensors, outs, self.target, tuple(stored), inputs)
        kernel = _Kernel(build, types, str(self.target), tuple(options.items()), signature)
        if kernel not in self._added:
            self._added[kernel] = self._builder.add_func(_built(kernel), build.__name__)
        return self._added[kernel]


def _type_key(ty: TensorType) -> tuple[object, ...]:
    return (ty.dtype, *(d if isinstance(d, int) else "dynamic" for d in ty.shape))


@lru_cache(maxsize=1024)
def _built(kernel: _Kernel) -> tirx.PrimFunc:
    """A process parses each kernel once."""
    return finished(kernel.build(kernel.signature, **dict(kernel.options)))
