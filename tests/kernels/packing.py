"""Packed weights and inputs of products on a CPU, beside float64 twins of what they hold."""

from __future__ import annotations

import numpy as np
from compiling import Array
from tvm.target import Target

from mlc_rwkv_world.kernels.cpu import activation, bfloat16
from mlc_rwkv_world.kernels.cpu.features import lanes
from mlc_rwkv_world.kernels.cpu.packed_weight import (
    reference_grouped,
    reference_narrow,
    reference_plain,
)
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.storage.groups import dequantize, quantize
from mlc_rwkv_world.storage.stored import PAIRS, RECORDS


def weight(dense: Array, form: Stored, target: Target) -> tuple[Array, Array]:
    """A weight [N, K], float32, in a packed form; and the values that this keeps."""
    if form.form == RECORDS:
        stored = form.packed("")
        words, scales = quantize(dense, stored)
        packed = reference_grouped(words, scales, form.bits, lanes(target))
        return packed, dequantize([words, scales], stored).astype(float)
    if form.form == PAIRS:
        bits = bfloat16.reference(dense)
        return reference_narrow(dense), bfloat16.widened(bits).astype(float)
    kept = dense.astype(form.dtype)
    return reference_plain(kept), kept.astype(float)


def given(x: Array, inputs: Inputs) -> tuple[Array, Array]:
    """x [T, K], float32, as an input of a product; and the values that this keeps."""
    kept = _given(x, inputs)
    return kept, values(kept).astype(float)


def _given(x: Array, inputs: Inputs) -> Array:
    if inputs is Inputs.BYTES:
        return activation.reference(x)
    return bfloat16.reference(x) if inputs is Inputs.BFLOAT16 else x


def values(given: Array) -> Array:
    """The values [T, K] of an input of a product."""
    if given.dtype == np.uint32:
        return activation.dequantized(given)
    return bfloat16.widened(given) if given.dtype == np.uint16 else given
