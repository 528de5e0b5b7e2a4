"""The operations that RWKV-4's parts alone decompose into, and their kernels."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.kernels.signature import Signature
from mlc_rwkv_world.kernels.table import Kernel
from mlc_rwkv_world.model.operations import named
from mlc_rwkv_world.versions.rwkv4 import wkv as anywhere
from mlc_rwkv_world.versions.rwkv4.cuda import wkv as cuda


def wkv(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The RWKV-4 recurrence over each sequence, all float32.

    k, v: [T, D]; decay (`-exp(time_decay)`) and first (`time_first`): [D]; state: a, b and p,
    [B, 3, D]. Returns the output [T, D] and the new state.
    """
    outs = [(k.shape, "float32"), (state.shape, "float32")]
    y, new = named("rwkv4.wkv_whole", [k, v, decay, first, state, offsets], outs)
    return y, new


def wkv_step(
    k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`wkv` where every row is the next token of its own sequence (T = B)."""
    outs = [(k.shape, "float32"), (state.shape, "float32")]
    y, new = named("rwkv4.wkv_step", [k, v, decay, first, state], outs)
    return y, new


def wkv_whole(sig: Signature) -> tirx.PrimFunc:
    """The recurrence over whole sequences."""
    return cuda.wkv(sig) if cuda.suits(sig) else anywhere.wkv(sig)


KERNELS: Mapping[str, Kernel] = {"rwkv4.wkv_whole": wkv_whole, "rwkv4.wkv_step": anywhere.wkv_step}
