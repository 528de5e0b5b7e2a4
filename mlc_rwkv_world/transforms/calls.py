"""Recognizing the calls that an export makes, and what calls of kernels need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

from tvm import relax, tirx
from tvm.ir import Op

from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.tvm_names import SBlock, SBlockRealize

_DPS_PACKED = Op.get("relax.call_dps_packed")
_PURE_PACKED = Op.get("relax.call_pure_packed")


def packed_name(call: relax.Expr) -> str | None:
    """The name of the packed function that a call is of, else None."""
    if isinstance(call, relax.Call) and call.op in (_DPS_PACKED, _PURE_PACKED):
        callee = call.args[0]
        if isinstance(callee, relax.ExternFunc):
            return str(callee.global_symbol)
    return None


def tensor_type(ty: relax.TensorType) -> TensorType:
    """A tensor's type as kernels are told it."""
    dims = [int(d) if isinstance(d, tirx.IntImm) else d for d in ty.shape.values]
    return TensorType(tuple(dims), str(ty.dtype))


def type_key(ty: TensorType) -> tuple[object, ...]:
    """Equal for types that differ in dynamic extents alone, which share a kernel."""
    return (ty.dtype, *(d if isinstance(d, int) else "dynamic" for d in ty.shape))


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel to be built; equal to those that differ in dynamic extents alone."""

    build: Callable[..., tirx.PrimFunc]
    types: tuple[tuple[object, ...], ...]
    target: str
    options: tuple[tuple[str, float], ...]
    signature: Signature = dataclasses.field(compare=False)


def built_kernel(
    build: Callable[..., tirx.PrimFunc], signature: Signature, **options: float
) -> tirx.PrimFunc:
    """`build(signature, **options)` with a root block; a process parses each kernel once."""
    # What divides arguments from results matters too.
    types = (*map(type_key, signature.args), (), *map(type_key, signature.outs))
    key = _Kernel(build, types, str(signature.target), tuple(options.items()), signature)
    return _built(key)


@lru_cache(maxsize=1024)
def _built(kernel: _Kernel) -> tirx.PrimFunc:
    return with_root_block(kernel.build(kernel.signature, **dict(kernel.options)))


def with_root_block(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Puts a kernel's bare loops into the block that Relax's passes expect every body to be."""
    if isinstance(func.body, SBlockRealize):
        return func
    block = SBlock([], [], [], "root", func.body)
    return func.with_body(SBlockRealize([], True, block))
