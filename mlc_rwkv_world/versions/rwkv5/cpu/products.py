"""The products of RWKV-5's and 6's blends on a CPU, in one parallel kernel."""

from __future__ import annotations

from tvm import tirx

from mlc_rwkv_world.kernels.cpu import products as shared
from mlc_rwkv_world.kernels.cpu.exp import silu, tanh
from mlc_rwkv_world.kernels.cpu.products import End
from mlc_rwkv_world.kernels.signature import Signature

_ENDS = (End(), End(), End(), End(silu), End(tanh, floats=False, small=True))


def products(sig: Signature) -> tirx.PrimFunc:
    """(xr, xk, xv, xg, xw, Wr, Wk, Wv, Wg, w1) -> r, k, v, silu(g), tanh(hw).

    All are float32 [T, D], but the last, an input of a product, which RWKV-6 alone has. 5.0 has no
    gate.
    """
    return shared.products(sig, _ENDS[: len(sig.outs)])
