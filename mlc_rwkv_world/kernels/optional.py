"""One source for kernels that differ in how many tensors they take."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from mlc_rwkv_world.kernels.signature import TensorType


def without(func: tirx.PrimFunc, *names: str) -> tirx.PrimFunc:
    """`func` without the parameters of these names, which its body must not mention.

    So a kernel for two or three inputs is written once, for three.
    """
    if not hasattr(func, "buffer_map"):
        kept = [param for param in func.params if param.name not in names]
        return tirx.PrimFunc(kept, func.body, func.ret_type, func.attrs, func.span)
    # TVM 0.26: a tensor's parameter is a handle with a name of its own.
    buffers = {param: at for param, at in func.buffer_map.items() if at.name not in names}
    kept = [
        param
        for param in func.params
        if param in buffers or not (param in func.buffer_map or param.name in names)
    ]
    return tirx.PrimFunc(kept, func.body, func.ret_type, buffers, func.attrs, func.span)


def padded(types: Sequence[TensorType], most: int) -> list[TensorType]:
    """`types` of parameters, up to `most` of them: what is left out is of any type."""
    return [*types, *[types[0]] * (most - len(types))]
