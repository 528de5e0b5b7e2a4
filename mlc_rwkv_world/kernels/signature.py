"""What a kernel is asked for: the types of one call and the target that it will run on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.storage import Stored


@dataclasses.dataclass(frozen=True)
class TensorType:
    """Shape (integers, or TIR expressions where dynamic) and dtype of one tensor."""

    shape: tuple[Any, ...]
    dtype: str

    def extents(self, *dynamic: str) -> list[Any]:
        """The shape as int64 expressions, for tensor expressions that Relax can fuse.

        Dynamic extents become new variables with the names given, in order.
        """
        names = iter(dynamic)
        return [
            tirx.IntImm("int64", d) if isinstance(d, int) else tirx.Var(next(names), "int64")
            for d in self.shape
        ]

    def static(self, axis: int) -> int:
        """The extent of an axis that is known when compiling."""
        return int(self.shape[axis])


def stored_types(stored: Stored, outer: int, inner: int) -> list[TensorType]:
    """The types of the tensors in which a weight [outer, inner] is stored."""
    return [TensorType(one.shape, one.dtype) for one in stored.tensors(outer, inner)]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Tensor arguments and results of one call of an operation.

    `stored` says how each weight among the arguments lies, in order; `inputs` what products with
    packed weights take, and what an operation makes for such products.
    """

    args: Sequence[TensorType]
    outs: Sequence[TensorType]
    target: Target
    stored: Sequence[Stored] = ()
    inputs: Inputs = Inputs.FLOAT32

    @property
    def on_cpu(self) -> bool:
        return bool(self.target.kind.name == "llvm")

    @property
    def has_async_copies(self) -> bool:
        """Whether this is an NVIDIA GPU of sm_80 or later, with what `cuda_intrinsics` needs."""
        if self.target.kind.name != "cuda":
            return False
        digits = re.sub(r"\D", "", str(self.target.attrs.get("arch", "")))
        return int(digits or 0) >= 80


# Where a CPU's kernel keeps the values of one task. TVM takes a buffer of scope "local" from a pool
# each time, and puts one of scope "global" on the stack, if it has less than 1024 bytes, where LLVM
# turns it into registers.
STACK = "global"

# Below this many steps, waking threads costs a CPU more than it saves.
_WORTH_THREADS = 1 << 15


def parallel_if_worth(steps: int | None) -> Any:
    """The loop over a CPU kernel's tasks; `steps` in all, None where only a run can tell."""
    return T.parallel if steps is None or steps >= _WORTH_THREADS else T.serial
