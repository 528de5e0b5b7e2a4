"""What one step of a product along K computes in, by the CPU's instructions and the weight's form.

An arithmetic adds a step's products to sums of `lanes` rows of a packed weight. For quantized
inputs and weights a step is a group of 32 values, multiplied as integers and scaled once; for plain
ones it is one value, or a pair of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvm.target import Target

from mlc_rwkv_world.kernels import bfloat16
from mlc_rwkv_world.kernels.activation import quantized_type
from mlc_rwkv_world.kernels.arithmetic_bytes import Avx2, Dot
from mlc_rwkv_world.kernels.arithmetic_grouped import Unpacked
from mlc_rwkv_world.kernels.arithmetic_plain import Bfloat16, Plain
from mlc_rwkv_world.kernels.cpu_features import (
    dots_of_bfloat16,
    features,
    lanes,
    vector_registers,
)
from mlc_rwkv_world.kernels.packing import GROUP_SIZE
from mlc_rwkv_world.kernels.signature import TensorType

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


def takes_bytes(x: TensorType) -> bool:
    """Whether an input has been quantized, see `activation`."""
    return x.dtype == "uint32"


def input_type(rows: Any, weight: TensorType, arithmetic: str) -> TensorType:
    """The type in which a product with a packed weight takes its input."""
    if weight.dtype == bfloat16.BITS:
        return TensorType((rows, 2 * weight.static(1)), bfloat16.BITS)
    if weight.dtype != "uint32":
        return TensorType((rows, weight.static(1)), FLOAT32)
    inner = weight.static(1) * GROUP_SIZE
    return quantized_type(rows, inner) if arithmetic == INT8 else TensorType((rows, inner), FLOAT32)


def arithmetic_of(x: TensorType, weight: TensorType, target: Target) -> Arithmetic:
    """The arithmetic for an input and a packed weight of these types."""
    have, wide, registers = features(target), lanes(target), vector_registers(target)
    if weight.dtype == bfloat16.BITS:
        return Bfloat16(weight, wide, registers, dots_of_bfloat16(target))
    if not takes_bytes(x):
        plain = weight.dtype != "uint32"
        return Plain(weight, wide, registers) if plain else Unpacked(weight, wide)
    if "avx512vnni" in have or "avxvnni" in have:
        return Dot(weight, wide, f"llvm.x86.avx512.vpdpbusd.{32 * wide}", unsigned=True)
    if "avx2" in have:
        return Avx2(weight)
    return Dot(weight, wide, "llvm.aarch64.neon.sdot.v4i32.v16i8", unsigned=False)
