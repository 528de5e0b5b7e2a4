"""The small model, lowered."""

from __future__ import annotations

import dataclasses
from typing import Any

from support.modules import small_config, small_module
from tvm import IRModule

from mlc_rwkv_world.compiler import metadata, pipeline
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import BuildTarget, resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named

PREFIX = "small_q4f16_1_"


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The small model, lowered for this CPU, and what its library will say of itself."""

    module: IRModule
    described: dict[str, Any]
    target: BuildTarget


def lower(prefix: str | None = None, *, stock: bool = False) -> Lowered:
    """The small model as q4f16_1; with a prefix, for a system library."""
    config, fmt, target = small_config(), format_named("q4f16_1"), resolve("llvm")
    specs = parameters(config, fmt)
    described = metadata.describe(config, fmt, specs, target, "float32", stock=stock)
    mod = small_module("q4f16_1", "float32", stock=stock)
    if prefix is not None:
        mod = mod.with_attr("system_lib_prefix", prefix)
    added = STOCK if stock else None
    mod = pipeline.run(mod, target.target, config, described, None, additions=added)
    return Lowered(mod, described, target)
