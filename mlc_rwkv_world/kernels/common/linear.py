"""`x W^T` for any way of storing W, on any target: correct everywhere, tuned nowhere."""

from __future__ import annotations

from tvm import s_tir, te, tirx

from mlc_rwkv_world.kernels.common.dense import value
from mlc_rwkv_world.kernels.signature import Signature


def linear_any(sig: Signature) -> tirx.PrimFunc:
    """(x [M, K], weight...) -> [M, N] in the type of the signature's result; sums are float32.

    A GPU's schedule is left to dlight.
    """
    (stored,) = sig.stored
    rows, inner = sig.args[0].extents("seq_len")
    _, outer = sig.outs[0].extents("seq_len")
    dtype, out_type = sig.args[0].dtype, sig.outs[0].dtype
    x = te.placeholder((rows, inner), dtype, "x")
    weight = [te.placeholder(ty.extents(), ty.dtype, "weight") for ty in sig.args[1:]]
    dense_type = "float32" if sig.on_cpu else dtype
    dense = te.compute(
        (outer, inner), lambda n, k: value(stored, weight, n, k, dense_type), "dense"
    )
    k = te.reduce_axis((0, inner), "k")
    product = te.compute(
        (rows, outer),
        lambda m, n: te.sum(x[m, k].astype("float32") * dense[n, k].astype("float32"), axis=k),
        "matmul",
    )
    if out_type != "float32":
        sums = product
        product = te.compute(sums.shape, lambda m, n: sums[m, n].astype(out_type), "rounded")
    func = te.create_prim_func([x, *weight, product])
    return _on_cpu(func) if sig.on_cpu else func.with_attr("op_pattern", 4)


def _on_cpu(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Rows of W in parallel, each value of W made where it is used."""
    sch = s_tir.Schedule(func)
    sch.compute_inline(sch.get_sblock("dense"))
    m, n, _ = sch.get_loops(sch.get_sblock("matmul"))
    sch.reorder(n, m)
    sch.parallel(n)
    return sch.mod["main"].with_attrs({"op_pattern": 8, "tirx.is_scheduled": 1})
