"""Whether a library that was built before computes what a build's own would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tvm

from mlc_rwkv_world.artifact.abi import METADATA
from mlc_rwkv_world.builder.plan import Plan
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime.library import open_library

# What a library of ours is made for, beside its parameters.
_IDENTITY = (
    "hidden_size",
    "layer_norm_epsilon",
    "rescale_every",
    "compute_dtype",
    "arithmetic",
    "fp32_layers",
    "float32_keys",
)


def check_reusable(path: Path, plan: Plan) -> None:
    """ArtifactError unless the library at `path` computes what this build's would."""
    ours = _identity(plan.described())
    theirs = _identity(json.loads(str(open_library(path, tvm.cpu()).machine[METADATA]())))
    for key, value in ours.items():
        if theirs[key] != value:
            found = "" if key == "params" else f" ({theirs[key]!r} there, {value!r} here)"
            raise ArtifactError(
                f"--reuse-lib {path}: it was built for other {key}{found}. "
                "Build without --reuse-lib."
            )


def _identity(described: dict[str, Any]) -> dict[str, Any]:
    """What a library's metadata and a build's have to agree on."""
    ours = described["rwkv_world"]
    return {
        "target": json.loads(ours["target"])["kind"],
        "quantization": described["quantization"],
        **{key: ours.get(key) for key in _IDENTITY},
        # Libraries that are older than this field say nothing of it.
        "head_size_divisor": ours.get("head_size_divisor", 8),
        "stock": ours.get("stock", True),
        "params": described["params"],
    }
