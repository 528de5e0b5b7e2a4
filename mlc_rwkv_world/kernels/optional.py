"""One source for kernels that differ in how many tensors they take."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.tvm_names import keep_parameters


def without(func: tirx.PrimFunc, *names: str) -> tirx.PrimFunc:
    """`func` without the tensor parameters of these names, which its body must not mention.

    So a kernel for two or three inputs is written once, for three.
    """
    return keep_parameters(func, lambda name: name not in names)
