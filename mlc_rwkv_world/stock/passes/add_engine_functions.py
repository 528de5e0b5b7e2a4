"""Adds the functions beside the model that mlc_llm's engine asks a library for."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax, tirx
from tvm.target import Target

from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.stock.kernels import logits as kernels

# Ids from here on have no place in the token table of the engine's own World tokenizer, and end
# the engine when they are sampled. Of them only 65529, 128 spaces, stands for anything.
_SAMPLED_IDS = 65529
# Temperatures up to this one mean the likeliest token, as in the engine's own softmax.
_COLD = 1e-5
# How many weights are summed in a row, and what probabilities add up to: the engine ends where
# a draw from [0, 1) finds their sum below it.
_SUMMED, _LEAST = 32, 1 + 2.0**-16


@tvm.transform.module_pass(opt_level=0, name="AddEngineFunctions")
class AddEngineFunctions:
    """Softmax, the changes to logits, and the buffer that several prompts are put together in."""

    def __init__(self, target: Target, prefill_tokens: int) -> None:
        self.target = target
        self.prefill_tokens = prefill_tokens

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        embedding = mod["embed"].ret_ty
        vocab_size = mod["decode"].ret_ty.fields[0].shape.values[2]
        builder = relax.BlockBuilder(mod)
        _softmax(builder, int(vocab_size))
        _allocate(builder, self.prefill_tokens, embedding)
        mod = builder.finalize()
        for kernel in (
            kernels.apply_logit_bias_inplace,
            kernels.apply_penalty_inplace,
            kernels.apply_bitmask_inplace,
        ):
            name = kernel.__name__
            mod[name] = finished(kernel(self.target)).with_attr("global_symbol", name)
        return mod


def _softmax(builder: relax.BlockBuilder, vocab_size: int) -> None:
    """(logits [B, 1, V], temperature [B]) to probabilities [B, 1, V].

    They add up to 1 or a hundred-thousandth more. At a temperature of 0 the greatest logits share
    all probability.
    """
    count = tirx.Var("batch_size", "int64")
    sampled = min(vocab_size, _SAMPLED_IDS)
    logits = relax.Var("logits", relax.TensorType([count, 1, vocab_size], "float32"))
    temperature = relax.Var("temperature", relax.TensorType([count], "float32"))
    op = relax.op
    with builder.function("softmax_with_temperature", [logits, temperature]):
        with builder.dataflow():
            x = op.reshape(logits, (count, vocab_size))
            x = builder.emit(op.strided_slice(x, axes=[1], begin=[0], end=[sampled]))
            heat = op.reshape(temperature, (count, 1))
            below = builder.emit(op.subtract(x, op.max(x, axis=1, keepdims=True)))
            warm = op.divide(below, op.maximum(heat, relax.const(_COLD, "float32")))
            cold = op.where(
                op.less(below, relax.const(0.0, "float32")),
                relax.const(-1e30, "float32"),
                relax.const(0.0, "float32"),
            )

            def where_warm(warm: relax.Expr, cold: relax.Expr) -> relax.Expr:
                # Compared anew for each use, so that no kernel writes booleans: WebGPU has none.
                return op.where(op.greater(heat, relax.const(_COLD, "float32")), warm, cold)

            weights = builder.emit(op.exp(where_warm(warm, cold)))
            # In three short steps: float32 loses a thousandth over so many in a row.
            total = builder.emit(op.nn.pad(weights, (0, 0, 0, -sampled % _SUMMED**2)))
            parts = -(-sampled // _SUMMED**2)
            total = op.reshape(total, (count, parts, _SUMMED, _SUMMED))
            for axis in (3, 2, 1):
                total = builder.emit(op.sum(total, axis=axis))
            least = where_warm(relax.const(_LEAST, "float32"), relax.const(1.0, "float32"))
            factor = op.divide(least, op.reshape(total, (count, 1)))
            p = builder.emit(op.multiply(weights, factor))
            p = op.nn.pad(p, (0, 0, 0, vocab_size - sampled))
            out = builder.emit_output(op.reshape(p, (count, 1, vocab_size)))
        builder.emit_func_output(out)


def _allocate(builder: relax.BlockBuilder, rows: int, embedding: relax.TensorType) -> None:
    shape = relax.ShapeExpr([rows, embedding.shape.values[1]])
    with builder.function("alloc_embedding_tensor", []):
        tensor = relax.op.builtin.alloc_tensor(shape, str(embedding.dtype), 0)
        builder.emit_func_output(builder.emit(tensor))
