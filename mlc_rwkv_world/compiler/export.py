"""A model's IRModule and its parameters, for one format and compute type."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvm import IRModule

from mlc_rwkv_world.artifact.identity import make_build_id
from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.model.causal_lm import CausalLM
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import Format, Stored
from mlc_rwkv_world.tvm_script import quick_parsing
from mlc_rwkv_world.versions.table import version_of

# Counts changes of what the numbers in the shards mean.
_STORAGE = 1


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """One stored tensor of an artifact: its name, shape and dtype, in the library's order.

    `stored` says how the matrix that it belongs to lies; None for what is no matrix.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: Stored | None


def compute_dtype(fmt: Format, target_kind: str) -> str:
    """What products compute in; a CPU has no fast float16 arithmetic, and float32 loses nothing."""
    return "float32" if target_kind == "llvm" else fmt.dtype


def model(
    config: ModelConfig, fmt: Format, compute_dtype: str, kind: type[CausalLM] = CausalLM
) -> CausalLM:
    """The model as an `nn.Module`, with its weights as the format stores them."""
    version = version_of(config.model_version)
    return kind(config, fmt, compute_dtype, version.model, version.fields(config))


def parameters(config: ModelConfig, fmt: Format) -> list[ParameterSpec]:
    """The tensors that an artifact of this configuration and format stores, in order."""
    named = model(config, fmt, fmt.dtype).named_parameters()
    return [
        ParameterSpec(name, tuple(map(int, p.shape)), str(p.dtype), getattr(p, "stored", None))
        for name, p in named
    ]


def build_id(config: ModelConfig, fmt: Format, specs: Sequence[ParameterSpec]) -> str:
    """The id that a library and the weights it can run have in common."""
    meaning = {
        "storage": _STORAGE,
        "quantization": fmt.name,
        "model_version": config.model_version,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "rescale_every": config.rescale_every,
    }
    # Artifacts that are older than this field say nothing of it.
    if config.head_size_divisor != 8:
        meaning["head_size_divisor"] = config.head_size_divisor
    return make_build_id(((spec.name, spec.shape, spec.dtype) for spec in specs), meaning)


@quick_parsing()
def export(
    config: ModelConfig, fmt: Format, compute_dtype: str, additions: Additions | None = None
) -> IRModule:
    """The model in parts, with no kernels chosen; with `additions`, for their host too."""
    kind = CausalLM if additions is None else additions.model
    module = model(config, fmt, compute_dtype, kind)
    mod, _, _ = module.export_tvm(spec=module.get_default_spec(), allow_extern=True)
    return mod
