"""Products of a branch's inputs on a CPU, in one parallel kernel, each with an end of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvm import tirx
from tvm.script import tirx as T

from mlc_rwkv_world.kernels.cpu.mix import storing
from mlc_rwkv_world.kernels.cpu.product import Product
from mlc_rwkv_world.kernels.cpu.several import Act, Ended, Several, unchanged
from mlc_rwkv_world.kernels.inputs import Inputs
from mlc_rwkv_world.kernels.optional import padded, without
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored

# The parameters of the most products that there are.
_INPUTS, _WEIGHTS, _OUTS = (
    tuple(f"{kind}_{letter}" for letter in "abcdefg") for kind in ("x", "w", "out")
)


@dataclasses.dataclass(frozen=True)
class End:
    """What becomes of a product's sums: `act` of them, as float32 or as a product's input.

    `small` products have few rows; they stand behind the others, and their tasks are spread among
    those. `piece` (i, n) is the product with the i-th of n parts of the weight's rows, whole blocks
    of them.
    """

    act: Act = unchanged
    floats: bool = True
    small: bool = False
    piece: tuple[int, int] = (0, 1)


def products(sig: Signature, ends: Sequence[End]) -> tirx.PrimFunc:
    """(inputs..., weights...) -> results, [T, N] each, for one to seven products."""
    count = len(ends)
    given, weights = sig.args[:count], sig.args[count:]
    each_type = zip(ends, given, weights, sig.stored, sig.outs, strict=True)
    ended = [_ended(sig, *one) for one in each_type]
    large = sum(not end.small for end in ends)
    several = Several(ended[:large], ended[large:])
    run, tasks = several.task(), several.tasks
    x, w, out = (padded(types, len(_INPUTS)) for types in (given, weights, sig.outs))

    @T.prim_func(s_tir=True)
    def kernel(
        var_x_a: T.handle,
        var_x_b: T.handle,
        var_x_c: T.handle,
        var_x_d: T.handle,
        var_x_e: T.handle,
        var_x_f: T.handle,
        var_x_g: T.handle,
        w_a: T.Buffer(w[0].shape, w[0].dtype),
        w_b: T.Buffer(w[1].shape, w[1].dtype),
        w_c: T.Buffer(w[2].shape, w[2].dtype),
        w_d: T.Buffer(w[3].shape, w[3].dtype),
        w_e: T.Buffer(w[4].shape, w[4].dtype),
        w_f: T.Buffer(w[5].shape, w[5].dtype),
        w_g: T.Buffer(w[6].shape, w[6].dtype),
        var_out_a: T.handle,
        var_out_b: T.handle,
        var_out_c: T.handle,
        var_out_d: T.handle,
        var_out_e: T.handle,
        var_out_f: T.handle,
        var_out_g: T.handle,
    ) -> None:
        rows = T.int64()
        x_a = T.match_buffer(var_x_a, (rows, *x[0].shape[1:]), x[0].dtype)
        x_b = T.match_buffer(var_x_b, (rows, *x[1].shape[1:]), x[1].dtype)
        x_c = T.match_buffer(var_x_c, (rows, *x[2].shape[1:]), x[2].dtype)
        x_d = T.match_buffer(var_x_d, (rows, *x[3].shape[1:]), x[3].dtype)
        x_e = T.match_buffer(var_x_e, (rows, *x[4].shape[1:]), x[4].dtype)
        x_f = T.match_buffer(var_x_f, (rows, *x[5].shape[1:]), x[5].dtype)
        x_g = T.match_buffer(var_x_g, (rows, *x[6].shape[1:]), x[6].dtype)
        out_a = T.match_buffer(var_out_a, (rows, *out[0].shape[1:]), out[0].dtype)
        out_b = T.match_buffer(var_out_b, (rows, *out[1].shape[1:]), out[1].dtype)
        out_c = T.match_buffer(var_out_c, (rows, *out[2].shape[1:]), out[2].dtype)
        out_d = T.match_buffer(var_out_d, (rows, *out[3].shape[1:]), out[3].dtype)
        out_e = T.match_buffer(var_out_e, (rows, *out[4].shape[1:]), out[4].dtype)
        out_f = T.match_buffer(var_out_f, (rows, *out[5].shape[1:]), out[5].dtype)
        out_g = T.match_buffer(var_out_g, (rows, *out[6].shape[1:]), out[6].dtype)
        each = T.meta_var(
            [
                (x_a, w_a, out_a),
                (x_b, w_b, out_b),
                (x_c, w_c, out_c),
                (x_d, w_d, out_d),
                (x_e, w_e, out_e),
                (x_f, w_f, out_f),
                (x_g, w_g, out_g),
            ]
        )
        for task in T.parallel(tasks):
            run(task, each, rows)

    return without(kernel, *_INPUTS[count:], *_WEIGHTS[count:], *_OUTS[count:])


def _ended(
    sig: Signature, end: End, x: TensorType, weight: TensorType, stored: Stored, out: TensorType
) -> Ended:
    place, pieces = end.piece
    blocks = weight.static(0) // pieces
    product = Product(x, TensorType((blocks, *weight.shape[1:]), weight.dtype), stored, sig)
    store = storing(Inputs.FLOAT32 if end.floats else sig.inputs)
    return Ended(product, end.act, store, out, first=place * blocks)
