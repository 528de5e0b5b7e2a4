"""The products of a branch's blends on a CPU, in one parallel kernel."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.exp import sigmoid, tanh
from mlc_rwkv_world.kernels.cpu.mix import storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.cpu.several import Ended, Several, unchanged
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.optional import without
from mlc_rwkv_world.kernels.signature import Signature

_LARGE = 3
_ACTS = {"w": tanh, "a": unchanged, "v": unchanged, "g": sigmoid}


def products(sig: Signature) -> tirx.PrimFunc:
    """(xr, xw, xk, xv, xa, xg, Wr, Wk, Wv, w1, a1, v1, g1) -> r, k, v, hw, ha, hv, hg.

    r, k and v are float32 [T, D]; the others, of which hw is under tanh and hg under a sigmoid,
    inputs of products. Block 0 has no v1 and no hv.
    """
    shared = len(sig.args) == 13
    small = "wavg" if shared else "wag"
    weights = sig.args[6:]
    floats, store = storing(Inputs.FLOAT32), storing(sig.inputs)
    found = [
        Product(sig.args[0], weight, stored, sig)
        for weight, stored in zip(weights, sig.stored, strict=True)
    ]
    several = Several(
        [Ended(product, unchanged, floats) for product in found[:_LARGE]],
        [
            Ended(product, _ACTS[letter], store)
            for letter, product in zip(small, found[_LARGE:], strict=True)
        ],
    )
    run, tasks = several.task(), several.tasks

    def kept(ones: list[Any]) -> list[Any]:
        return [one for letter, one in zip("wavg", ones, strict=True) if letter in small]

    x_type, large = sig.args[0], weights[0]
    x_shape, width = x_type.shape[1:], sig.outs[0].static(1)
    first = dict(zip(small, weights[_LARGE:], strict=True))
    hidden = dict(zip(small, sig.outs[_LARGE:], strict=True))
    # What block 0 lacks, it takes from another in the parameters that are left out.
    w_type, a_type, g_type = (first[letter] for letter in "wag")
    v_type = first.get("v", w_type)
    hw_type, ha_type, hg_type = (hidden[letter] for letter in "wag")
    hv_type = hidden.get("v", hw_type)

    @T.prim_func(s_tir=True)
    def kernel(
        var_xr: T.handle,
        var_xw: T.handle,
        var_xk: T.handle,
        var_xv: T.handle,
        var_xa: T.handle,
        var_xg: T.handle,
        wr: T.Buffer(large.shape, large.dtype),
        wk: T.Buffer(large.shape, large.dtype),
        wv: T.Buffer(large.shape, large.dtype),
        w1: T.Buffer(w_type.shape, w_type.dtype),
        a1: T.Buffer(a_type.shape, a_type.dtype),
        v1: T.Buffer(v_type.shape, v_type.dtype),
        g1: T.Buffer(g_type.shape, g_type.dtype),
        var_r: T.handle,
        var_k: T.handle,
        var_v: T.handle,
        var_hw: T.handle,
        var_ha: T.handle,
        var_hv: T.handle,
        var_hg: T.handle,
    ) -> None:
        rows = T.int64()
        xr = T.match_buffer(var_xr, (rows, *x_shape), x_type.dtype)
        xw = T.match_buffer(var_xw, (rows, *x_shape), x_type.dtype)
        xk = T.match_buffer(var_xk, (rows, *x_shape), x_type.dtype)
        xv = T.match_buffer(var_xv, (rows, *x_shape), x_type.dtype)
        xa = T.match_buffer(var_xa, (rows, *x_shape), x_type.dtype)
        xg = T.match_buffer(var_xg, (rows, *x_shape), x_type.dtype)
        r = T.match_buffer(var_r, (rows, width), "float32")
        k = T.match_buffer(var_k, (rows, width), "float32")
        v = T.match_buffer(var_v, (rows, width), "float32")
        hw = T.match_buffer(var_hw, (rows, *hw_type.shape[1:]), hw_type.dtype)
        ha = T.match_buffer(var_ha, (rows, *ha_type.shape[1:]), ha_type.dtype)
        hv = T.match_buffer(var_hv, (rows, *hv_type.shape[1:]), hv_type.dtype)
        hg = T.match_buffer(var_hg, (rows, *hg_type.shape[1:]), hg_type.dtype)
        large_ones = T.meta_var([(xr, wr, r), (xk, wk, k), (xv, wv, v)])
        small_ones = T.meta_var([(xw, w1, hw), (xa, a1, ha), (xv, v1, hv), (xg, g1, hg)])
        for task in T.parallel(tasks):
            run(task, large_ones + kept(small_ones), rows)

    return kernel if shared else without(kernel, "v1", "hv")
