"""What stock mlc_llm has in a library beside our own functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvm.ir.transform import Pass
from tvm.target import Target

from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.stock.exports import StockLM
from mlc_rwkv_world.stock.limits import ENGINE_PREFILL_TOKENS
from mlc_rwkv_world.stock.operations import KERNELS
from mlc_rwkv_world.stock.passes.add_engine_functions import AddEngineFunctions
from mlc_rwkv_world.stock.passes.add_sampling_functions import AddSamplingFunctions

# Where the engine draws tokens on the device, and stops if a library has no functions for it.
_DRAWS_THERE = ("cuda", "vulkan", "metal", "webgpu")


def _passes(target: Target, config: ModelConfig) -> Sequence[Pass]:
    added: list[Pass] = [AddEngineFunctions(target, ENGINE_PREFILL_TOKENS)]
    if target.kind.name in _DRAWS_THERE:
        added.append(AddSamplingFunctions(target, config.vocab_size))
    return added


STOCK = Additions(
    model=StockLM, operations=KERNELS, passes=_passes, code=Path(__file__).resolve().parent
)
