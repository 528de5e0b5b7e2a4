"""The rule of a recurrence whose heads hold a matrix: that of RWKV-5, 6 and 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from tvm import tirx
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.kernels.common.stack import stack
from mlc_rwkv_world.kernels.emitter import Emitter, Rule, tensor_type, type_of
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.model.parts import ROWS, Part

Kernel = Callable[..., tirx.PrimFunc]


def recurrence(kernel: Kernel, pooled: Kernel, roles: Sequence[str]) -> Rule:
    """Calls `kernel` on the rows of a state, or `pooled` in our pool.

    `roles` are those of a token's vectors, in the order in which both take them. WebGPU binds eight
    buffers to a kernel, so there the vectors that are a token's own become one.
    """

    def rule(part: Part, emit: Emitter) -> Sequence[Tensor]:
        vectors = [part.tensor(role) for role in roles]
        if emit.target.kind.name == "webgpu":
            vectors = _stacked(vectors, emit)
        args = [*vectors, *part.tensors(OFFSETS)]
        if POOL not in part:
            outs = [tensor_type(ty) for ty in part.outs]
            return emit.call(kernel, [*args, part.tensor(ROWS)], outs)
        pool = part.tensor(POOL)
        (row,), (height,) = part.attrs["rows"], part.attrs["heights"]
        place = [pool, part.tensor(SLOTS), part.attrs["layer"], row]
        outs = [tensor_type(ty) for ty in part.outs[:-1]]
        return emit.call(pooled, [*args, *place], outs, state=pool, size=height)

    return rule


def _stacked(vectors: list[Tensor], emit: Emitter) -> list[Tensor]:
    """One tensor for the vectors [T, D] that come first, and those [D] that follow."""
    tokens = list(takewhile(lambda vector: len(vector.shape) == 2, vectors))
    out = TensorType((len(tokens), *type_of(tokens[0]).shape), "float32")
    return [*emit.call(stack, tokens, [out]), *vectors[len(tokens) :]]
