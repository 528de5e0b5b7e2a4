"""The kernels that a pass adds to a module, each once for the types that it is called with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache

from tvm import relax, tirx
from tvm.target import Target

from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.transforms.calls import tensor_type, with_root_block


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel to be built; equal to those that differ in dynamic extents alone."""

    build: Callable[..., tirx.PrimFunc]
    types: tuple[object, ...]
    target: str
    options: tuple[tuple[str, float], ...]
    signature: Signature = dataclasses.field(compare=False)


class KernelTable:
    """Kernels for one target in the module of one builder."""

    def __init__(self, builder: relax.BlockBuilder, target: Target) -> None:
        self._builder = builder
        self._target = target
        self._added: dict[_Kernel, relax.GlobalVar] = {}

    def add(
        self,
        name: str,
        build: Callable[..., tirx.PrimFunc],
        args: Sequence[relax.Expr],
        outs: Sequence[TensorType],
        stored: Sequence[Stored] = (),
        inputs: Inputs = Inputs.FLOAT32,
        /,
        **options: float,
    ) -> relax.GlobalVar:
        """`build(signature, **options)` for these arguments, of which only the tensors count.

        `stored` and `inputs` are the signature's.

        Calls that differ in dynamic extents alone share one kernel.
        """
        tensors = [tensor_type(arg.ty) for arg in args if isinstance(arg.ty, relax.TensorType)]
        # What divides arguments from results matters too.
        types = (*map(_type_key, tensors), (), *map(_type_key, outs))
        signature = Signature(tensors, outs, self._target, tuple(stored), inputs)
        key = (*types, tuple(stored), inputs)
        kernel = _Kernel(build, key, str(self._target), tuple(options.items()), signature)
        if kernel not in self._added:
            self._added[kernel] = self._builder.add_func(_built(kernel), name)
        return self._added[kernel]


def _type_key(ty: TensorType) -> tuple[object, ...]:
    return (ty.dtype, *(d if isinstance(d, int) else "dynamic" for d in ty.shape))


@lru_cache(maxsize=1024)
def _built(kernel: _Kernel) -> tirx.PrimFunc:
    """With a root block; a process parses each kernel once."""
    return with_root_block(kernel.build(kernel.signature, **dict(kernel.options)))
