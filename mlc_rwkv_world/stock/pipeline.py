"""The host's compilation pipeline, with ours in its place for our model.

The host asks TVM for the pipeline `mlc_llm`. What it gets decides, when the module comes, which
one runs: ours chooses precision and then kernels as our own build does, so that both write the
same library.
"""

from __future__ import annotations

import functools
import json
from types import ModuleType
from typing import Any

from mlc_rwkv_world.stock.models import MODULE_ATTRIBUTE

NAME = "mlc_llm"


def add_pipeline(_: ModuleType) -> None:
    """Replaces the entry in TVM's table of pipelines by one that knows both."""
    from tvm.relax import pipeline

    original = pipeline.PIPELINE_MAP[NAME]
    if not hasattr(original, "rwkv_world"):
        pipeline.PIPELINE_MAP[NAME] = _choosing(original)


def _choosing(original: Any) -> Any:
    import tvm

    @functools.wraps(original)
    def choosing(*args: Any, **kwargs: Any) -> Any:
        host = original(*args, **kwargs)

        def choose(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
            description = (mod.attrs or {}).get(MODULE_ATTRIBUTE)
            if description is None:
                return host(mod)
            return _ours(mod, json.loads(str(description)), kwargs)

        return tvm.transform.module_pass(choose, opt_level=0, name="ChoosePipeline")

    choosing.rwkv_world = True  # type: ignore[attr-defined]
    return choosing


def _ours(mod: Any, description: dict[str, Any], arguments: dict[str, Any]) -> Any:
    from mlc_rwkv_world.compiler import metadata, pipeline
    from mlc_rwkv_world.compiler.export import parameters
    from mlc_rwkv_world.compiler.target import BuildTarget
    from mlc_rwkv_world.model.config import ModelConfig
    from mlc_rwkv_world.stock.additions import STOCK
    from mlc_rwkv_world.storage import format_named

    config, fmt = ModelConfig.from_dict(description["config"]), format_named(description["format"])
    target = arguments["target"]
    # The host reads its own dictionary again afterwards, for how much memory a library takes.
    described = arguments["metadata"]
    ours = metadata.describe(
        config,
        fmt,
        parameters(config, fmt),
        BuildTarget(target),
        description["compute_dtype"],
    )
    for key, value in ours.items():
        described.setdefault(key, value)
    mod = mod.without_attr(MODULE_ATTRIBUTE)
    dump = arguments.get("debug_dump")
    return pipeline.run(mod, target, config, described, dump, additions=STOCK)
