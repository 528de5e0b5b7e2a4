"""The rule of a recurrence whose heads hold a matrix: that of RWKV-5, 6 and 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type
from mlc_rwkv_world.model.parts import ROWS, Part

Kernel = Callable[..., tirx.PrimFunc]


def recurrence(kernel: Kernel, pooled: Kernel, roles: Sequence[str]) -> Rule:
    """Calls `kernel` on the rows of a state, or `pooled` in our pool.

    `roles` are those of a token's vectors, in the order in which both take them.
    """

    def rule(part: Part, emit: Emitter) -> Sequence[Tensor]:
        args = [*(part.tensor(role) for role in roles), *part.tensors(OFFSETS)]
        if POOL not in part:
            outs = [tensor_type(ty) for ty in part.outs]
            return emit.call(kernel, [*args, part.tensor(ROWS)], outs)
        pool = part.tensor(POOL)
        (row,), (height,) = part.attrs["rows"], part.attrs["heights"]
        place = [pool, part.tensor(SLOTS), part.attrs["layer"], row]
        outs = [tensor_type(ty) for ty in part.outs[:-1]]
        return emit.call(pooled, [*args, *place], outs, state=pool, size=height)

    return rule
