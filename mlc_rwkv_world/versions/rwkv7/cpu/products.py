"""The products of RWKV-7's blends on a CPU, in one parallel kernel."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.kernels.cpu import products as shared
from mlc_rwkv_world.kernels.cpu.exp import sigmoid, tanh
from mlc_rwkv_world.kernels.cpu.products import End
from mlc_rwkv_world.kernels.cpu.several import unchanged
from mlc_rwkv_world.kernels.signature import Signature

_ACTS = {"w": tanh, "a": unchanged, "v": unchanged, "g": sigmoid}


def products(sig: Signature) -> tirx.PrimFunc:
    """(xr, xk, xv, xw, xa, xv, xg, Wr, Wk, Wv, w1, a1, v1, g1) -> r, k, v, hw, ha, hv, hg.

    r, k and v are float32 [T, D]; the others, of which hw is under tanh and hg under a sigmoid,
    inputs of products. Block 0 has no v1 and no hv, nor xv a second time.
    """
    small = "wavg" if len(sig.outs) == 7 else "wag"
    ends = [End()] * 3 + [End(_ACTS[letter], floats=False, small=True) for letter in small]
    return shared.products(sig, ends)
