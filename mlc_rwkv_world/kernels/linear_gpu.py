"""`x W^T` on a GPU, with the unpacking of W inside the kernel.

On CUDA the kernels are ours where the sizes suit them; the rest is left for dlight to schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from mlc_rwkv_world.kernels import matmul_cuda
from mlc_rwkv_world.kernels.dot_cuda import Stored
from mlc_rwkv_world.kernels.matvec_cuda import matvec
from mlc_rwkv_world.kernels.packing import GROUP_SIZE, bits_of, unpack, values_per_word
from mlc_rwkv_world.kernels.signature import Signature


def linear(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result; sums are float32."""
    if sig.has_async_copies and sig.args[0].shape[0] == 1 and _can_stream(sig):
        return matvec(sig)
    if matmul_cuda.suits(sig):
        return matmul_cuda.matmul(sig)
    rows, inner = sig.args[0].extents("seq_len")
    _, outer = sig.outs[0].extents("seq_len")
    x = te.placeholder((rows, inner), sig.args[0].dtype, "x")
    stored = [te.placeholder(ty.extents(), ty.dtype, "weight") for ty in sig.args[1:]]
    weight = te.compute((outer, inner), _dense(sig, stored), "dense")
    k = te.reduce_axis((0, inner), "k")
    product = te.compute(
        (rows, outer),
        lambda m, n: te.sum(x[m, k].astype("float32") * weight[n, k].astype("float32"), axis=k),
        "matmul",
    )
    out_type = sig.outs[0].dtype
    if out_type != "float32":
        sums = product
        product = te.compute(sums.shape, lambda m, n: sums[m, n].astype(out_type), "rounded")
    return te.create_prim_func([x, *stored, product]).with_attr("op_pattern", 4)


def _can_stream(sig: Signature) -> bool:
    return Stored.of(sig.args[0], list(sig.args[1:])).can_stream


def _dense(sig: Signature, stored: Sequence[te.Tensor]) -> Callable[..., Any]:
    """The value at (n, k) of a stored weight, in the type of x."""
    dtype = sig.args[0].dtype
    if len(stored) == 1:
        return lambda n, k: stored[0][n, k].astype(dtype)
    q_weight, q_scale = stored
    bits = bits_of(sig.args[1].static(1), sig.args[0].static(1))
    per_word = values_per_word(bits)

    def dequantize(n: Any, k: Any) -> Any:
        value = unpack(q_weight[n, k // per_word], (k % per_word).astype("int32"), bits)
        return value.astype(dtype) * q_scale[n, k // GROUP_SIZE].astype(dtype)

    return dequantize
