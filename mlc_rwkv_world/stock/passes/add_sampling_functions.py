"""Adds the functions with which mlc_llm's engine draws tokens on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.target import Target

from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.stock.kernels import sampling as kernels
from mlc_rwkv_world.stock.kernels import sorting


@tvm.transform.module_pass(opt_level=0, name="AddSamplingFunctions")
class AddSamplingFunctions:
    """Sorting, drawing with and without top_p, and looking probabilities up: over [B, V] float32.

    All by kernels of ours: TVM's for sorting, sums and drawing are no WGSL, or count on a warp's
    moving in step.
    """

    def __init__(self, target: Target, vocab_size: int) -> None:
        self.target = target
        self.vocab_size = vocab_size

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        builder = relax.BlockBuilder(mod)
        _argsort(builder, self.vocab_size)
        _renormalize(builder, self.vocab_size)
        self._multinomial(builder)
        self._sample(builder)
        self._take(builder)
        return builder.finalize()

    def _multinomial(self, builder: relax.BlockBuilder) -> None:
        batch, count = _sizes("batch_size", "num_samples")
        names = ("probs", "uniform_samples", "sample_indices")
        shapes = ((batch, self.vocab_size), (count,), (count,))
        probs, uniform, rows = _inputs(names, shapes, ("float32", "float32", "int32"))
        kernel = finished(kernels.multinomial_from_uniform(self.target, self.vocab_size))
        with builder.function("multinomial_from_uniform", [probs, uniform, rows]):
            with builder.dataflow():
                sums = _summed(builder, probs, self.vocab_size)
                function = builder.add_func(
                    kernel.without_attr("global_symbol"), "multinomial_from_uniform_kernel"
                )
                ids = relax.call_tir(
                    function, [probs, sums, uniform, rows], relax.TensorType([count], "int32")
                )
                out = builder.emit_output(builder.emit(ids))
            builder.emit_func_output(out)

    def _sample(self, builder: relax.BlockBuilder) -> None:
        batch, count = _sizes("batch_size", "num_samples")
        names = ("sorted_probs", "sorted_indices", "uniform_samples", "sample_indices", "top_p")
        shapes = ((batch, self.vocab_size), (batch, self.vocab_size), (count,), (count,), (batch,))
        types = ("float32", "int32", "float32", "int32", "float32")
        inputs = _inputs(names, shapes, types)
        kernel = kernels.sample_with_top_p(self.target, self.vocab_size)
        outputs = [relax.TensorType([count], "int32")]
        _call(builder, "sample_with_top_p", kernel, inputs, outputs)

    def _take(self, builder: relax.BlockBuilder) -> None:
        batch, count, positions = _sizes("batch_size", "num_samples", "num_positions")
        names = ("probs", "sorted_indices", "sample_indices", "sampling_result", "top_prob_offsets")
        wide = (batch, self.vocab_size)
        shapes = (wide, wide, (count,), (count,), (positions,))
        types = ("float32", "int32", "int32", "int32", "int32")
        inputs = _inputs(names, shapes, types)
        kernel = kernels.sampler_take_probs(self.target, self.vocab_size)
        outputs = [
            relax.TensorType([count], "float32"),
            relax.TensorType([positions], "float32"),
            relax.TensorType([positions], "int32"),
        ]
        _call(builder, "sampler_take_probs", kernel, inputs, outputs)


def _sizes(*names: str) -> list[tirx.Var]:
    return [tirx.Var(name, "int64") for name in names]


def _inputs(
    names: Sequence[str], shapes: Sequence[Sequence[Any]], types: Sequence[str]
) -> list[relax.Var]:
    given = zip(names, shapes, types, strict=True)
    return [relax.Var(name, relax.TensorType(list(shape), kind)) for name, shape, kind in given]


def _call(
    builder: relax.BlockBuilder,
    name: str,
    kernel: tirx.PrimFunc,
    inputs: list[relax.Var],
    outputs: list[relax.TensorType],
) -> None:
    with builder.function(name, inputs):
        with builder.dataflow():
            kernel = finished(kernel).without_attr("global_symbol")
            function = builder.add_func(kernel, f"{name}_kernel")
            # A kernel with one output gives a tensor, not a tuple.
            types = outputs[0] if len(outputs) == 1 else outputs
            call = builder.emit(relax.call_tir(function, inputs, types))
            out = builder.emit_output(call)
        builder.emit_func_output(out)


def _sorted(
    builder: relax.BlockBuilder, probs: relax.Var, vocab_size: int
) -> tuple[relax.Var, relax.Var]:
    """Probabilities from the greatest down, and their ids."""
    kernel = finished(sorting.argsort(vocab_size)).without_attr("global_symbol")
    function = builder.add_func(kernel, "argsort_kernel")
    types = [relax.TensorType(probs.ty.shape, kind) for kind in ("float32", "int32")]
    both = builder.emit(relax.call_tir(function, [probs], types))
    return builder.emit(both[0]), builder.emit(both[1])


def _summed(builder: relax.BlockBuilder, values: relax.Var, vocab_size: int) -> relax.Var:
    """The sums of each row up to each value."""
    kernel = finished(sorting.sums(vocab_size)).without_attr("global_symbol")
    function = builder.add_func(kernel, "sums_kernel")
    return builder.emit(
        relax.call_tir(function, [values], relax.TensorType(values.ty.shape, "float32"))
    )


def _argsort(builder: relax.BlockBuilder, vocab_size: int) -> None:
    (batch,) = _sizes("batch_size")
    (probs,) = _inputs(["probs"], [(batch, vocab_size)], ["float32"])
    with builder.function("argsort_probs", [probs]):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple(_sorted(builder, probs, vocab_size)))
        builder.emit_func_output(out)


def _renormalize(builder: relax.BlockBuilder, vocab_size: int) -> None:
    """(probabilities, top_p [B], guesses [B, 3], which sorting makes needless)."""
    (batch,) = _sizes("batch_size")
    names = ("probs", "top_p", "init_pivots")
    shapes = ((batch, vocab_size), (batch,), (batch, 3))
    probs, top_p, pivots = _inputs(names, shapes, ("float32",) * 3)
    op = relax.op
    with builder.function("renormalize_by_top_p", [probs, top_p, pivots]):
        with builder.dataflow():
            falling, _ = _sorted(builder, probs, vocab_size)
            sums = _summed(builder, falling, vocab_size)
            # At 0, too, the likeliest is kept.
            limit = op.maximum(op.reshape(top_p, (batch, 1)), relax.const(1e-30, "float32"))
            is_kept = op.less(op.subtract(sums, falling), limit)
            values = op.where(is_kept, falling, relax.const(2.0, "float32"))
            least = builder.emit(op.min(builder.emit(values), axis=1, keepdims=True))
            zero = relax.const(0.0, "float32")
            kept = builder.emit(op.where(op.greater_equal(probs, least), probs, zero))
            total = builder.emit(op.sum(kept, axis=1, keepdims=True))
            out = builder.emit_output(op.divide(kept, total))
        builder.emit_func_output(out)
