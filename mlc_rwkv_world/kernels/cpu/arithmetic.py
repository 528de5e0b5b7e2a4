"""What one step of a product along K computes in, by the CPU's instructions and the weight's form.

An arithmetic adds a step's products to sums of `lanes` rows of a packed weight. For quantized
inputs and weights a step is a group of 32 values, multiplied as integers and scaled once; for plain
ones it is one value, or a pair of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvm.target import Target

from mlc_rwkv_world.kernels.cpu import bfloat16
from mlc_rwkv_world.kernels.cpu.activation import quantized_type
from mlc_rwkv_world.kernels.cpu.arithmetic_bytes import Avx2, Dot
from mlc_rwkv_world.kernels.cpu.arithmetic_grouped import Unpacked
from mlc_rwkv_world.kernels.cpu.arithmetic_plain import Bfloat16, Plain
from mlc_rwkv_world.kernels.cpu.features import (
    dots_of_bfloat16,
    features,
    lanes,
    vector_registers,
)
from mlc_rwkv_world.kernels.cpu.packed_weight import packed
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.signature import TensorType
from mlc_rwkv_world.storage.stored import PAIRS, RECORDS, Stored

INT8 = "int8"
FLOAT32 = "float32"
BFLOAT16 = "bfloat16"


class Arithmetic(Protocol):
    """How sums of rows grow; x and w are the buffers of a packed weight and its input."""

    lanes: int
    tokens: int
    vectors: int
    # What kernels import, see `llvm_functions`.
    imports: str
    # Blocks of a weight to read side by side where each is used once, as measured.
    streams: int
    grouped: bool

    def steps(self) -> int:
        """How many steps K takes."""

    @property
    def add(self) -> Callable[..., Any] | None:
        """`add(total, x, token, w, block, step, row)`; None where there are tiles for all.

        It gives `total` (float32 x lanes) and the products of one step for the rows from `row` on.
        """

    def tile(self, tokens: int) -> Callable[..., None] | None:
        """`add_group(x, first, last, w, block, step, total, at)`, or None where `add` is as good.

        It adds one step of a block of W and `tokens` rows of x, from `first` on and at most `last`,
        to the tokens * 32 sums in `total` from `at` on.
        """


def inputs_of(stored: Stored, arithmetic: str) -> Inputs:
    """What a product with a packed weight takes where such an arithmetic was chosen."""
    if stored.form == PAIRS:
        return Inputs.BFLOAT16
    return Inputs.BYTES if stored.form == RECORDS and arithmetic == INT8 else Inputs.FLOAT32


def input_type(rows: Any, inner: int, inputs: Inputs) -> TensorType:
    """The type of `rows` inputs of `inner` values."""
    if inputs is Inputs.BYTES:
        return quantized_type(rows, inner)
    dtype = bfloat16.BITS if inputs is Inputs.BFLOAT16 else FLOAT32
    return TensorType((rows, inner), dtype)


def multiplied_as_bytes(stored: Stored) -> bool:
    """Whether a CPU that multiplies bytes does so with weights of shards like this."""
    form = packed(stored)
    return form is not None and inputs_of(form, INT8) is Inputs.BYTES


def arithmetic_of(inputs: Inputs, weight: TensorType, stored: Stored, target: Target) -> Arithmetic:
    """The arithmetic for such inputs and a packed weight of this type."""
    have, wide, registers = features(target), lanes(target), vector_registers(target)
    if inputs is Inputs.BFLOAT16:
        return Bfloat16(weight, wide, registers, dots_of_bfloat16(target))
    if inputs is Inputs.FLOAT32:
        records = stored.form == RECORDS
        return Unpacked(weight, stored, wide) if records else Plain(weight, wide, registers)
    if "avx512vnni" in have or "avxvnni" in have:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * wide}"
        return Dot(weight, stored, wide, name, unsigned=True)
    if "avx2" in have:
        return Avx2(weight, stored)
    return Dot(weight, stored, wide, "llvm.aarch64.neon.sdot.v4i32.v16i8", unsigned=False)
