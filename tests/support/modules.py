"""Small models as IRModules, and what is called in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from tvm import IRModule, relax
from tvm.ir.transform import Pass
from tvm.target import Target

from mlc_rwkv_world.compiler.export import export
from mlc_rwkv_world.compiler.passes.calls import packed_name
from mlc_rwkv_world.compiler.passes.choose_kernels import ChooseKernels
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.tvm_names import name_of
from mlc_rwkv_world.tvm_script import quick_parsing
from mlc_rwkv_world.versions.table import VERSIONS

LAYERS = 2
Parsing = Callable[[], AbstractContextManager[None]]
# What makes `small_config` an RWKV-7 of two heads, with ranks that are all different.
RWKV7 = {
    "model_version": 7,
    "hidden_size": 128,
    "intermediate_size": 512,
    "decay_low_rank_dim": 32,
    "a_low_rank_dim": 64,
    "v_low_rank_dim": 96,
    "gate_low_rank_dim": 160,
}

# The same of an RWKV-5 and an RWKV-6.
RWKV5 = {"model_version": 5, "hidden_size": 128, "intermediate_size": 448}
RWKV6 = {**RWKV5, "model_version": 6, "mix_low_rank_dim": 32, "decay_low_rank_dim": 64}
CHANGES: dict[int, dict[str, int]] = {4: {}, 5: RWKV5, 6: RWKV6, 7: RWKV7}


def small_config(**changes: Any) -> ModelConfig:
    """Two blocks of 64 channels and a vocabulary of 96, so that no two sizes are the same."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "vocab_size": 96,
        "prefill_chunk_size": 16,
        "max_batch_size": 4,
    }
    return ModelConfig(**(sizes | changes))


@cache
def small_module(
    quantization: str, compute_dtype: str, *, stock: bool = True, **changes: Any
) -> IRModule:
    """The exported functions of `small_config`, which nobody may change."""
    fmt = format_named(quantization)
    return export(small_config(**changes), fmt, compute_dtype, STOCK if stock else None)


def chosen(
    mod: IRModule, target: Target, number: int = 4, *, parsing: Parsing = quick_parsing
) -> IRModule:
    """A module of a version with its kernels, as the pipeline chooses them."""
    version = VERSIONS[number]
    with target:
        chosen = ChooseKernels(
            target,
            version.all_parts(),
            {**version.all_operations(), **STOCK.operations},
            version.all_rules(target.kind.name),
        )
        return applied(chosen, mod, parsing)


def applied(change: Pass, mod: IRModule, parsing: Parsing = quick_parsing) -> IRModule:
    """What a pass makes of a module, its kernels parsed as the pipeline parses them."""
    with parsing():
        # What `module_pass` makes of a class has no type.
        lowered: IRModule = change(mod)
    return lowered


def functions(mod: IRModule) -> dict[str, relax.Function]:
    """The Relax functions by name."""
    return {
        name_of(gvar): func
        for gvar, func in mod.functions_items()
        if isinstance(func, relax.Function)
    }


def calls(func: relax.Function) -> Iterator[relax.Call]:
    """The calls that a function binds, in order."""
    for block in func.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                yield binding.value


def callee(call: relax.Call) -> str:
    """The name of the packed function or of the operator that a call is of."""
    name = packed_name(call)
    if name is not None:
        return name
    return str(call.op.name) if hasattr(call.op, "name") else type(call.op).__name__


def callees(func: relax.Function) -> Counter[str]:
    """How often each function or operator is called."""
    return Counter(map(callee, calls(func)))
