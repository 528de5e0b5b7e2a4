"""What a build is asked for, settled as far as that goes without the checkpoint."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.compiler import arithmetic as arithmetic_of
from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.compiler.export import compute_dtype as usual_dtype
from mlc_rwkv_world.compiler.target import BuildTarget, resolve
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.fp32_layers import parse
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.storage import Format, format_named

# Measures instead of naming blocks.
AUTO = "auto"
# What a library can be planned for without its memory or its numbers running over.
_MOST = {"max_seq_len": (1 << 31) - 1, "prefill_chunk_size": 1 << 16, "max_batch_size": 1 << 12}
# More than any model has: for options that are looked at before the model is.
_MOST_BLOCKS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Choices:
    """How to build any checkpoint. `arithmetic` is that of products on a CPU, by use.

    `fp32_layers` is text as `build` takes it, since only a model tells how many blocks there are.
    """

    target: BuildTarget
    format: Format
    compute_dtype: str
    arithmetic: dict[str, str]
    fp32_layers: str | None
    float32_keys: bool
    max_seq_len: int | None
    prefill_chunk_size: int
    max_batch_size: int
    additions: Additions | None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1.")
            if value is not None and value > most:
                raise UsageError(f"{name} is {value}; it can be {most} at most.")
        if self.fp32_layers not in (None, AUTO):
            parse(self.fp32_layers, _MOST_BLOCKS)


def choose(
    *,
    target: str,
    quantization: str,
    compute_dtype: str,
    arithmetic: str,
    fp32_layers: str | None,
    float32_keys: bool,
    max_seq_len: int | None,
    prefill_chunk_size: int,
    max_batch_size: int,
    additions: Additions | None,
) -> Choices:
    """The choices that a user's words mean on this machine. Raises UsageError, TargetError."""
    chosen, fmt = for_this_cpu(resolve(target), target), format_named(quantization)
    computes = _compute_dtype(compute_dtype, fmt, chosen)
    return Choices(
        target=chosen,
        format=fmt,
        compute_dtype=computes,
        arithmetic=arithmetic_of.resolve(arithmetic, chosen, fmt, computes),
        fp32_layers=fp32_layers,
        float32_keys=float32_keys,
        max_seq_len=max_seq_len,
        prefill_chunk_size=prefill_chunk_size,
        max_batch_size=max_batch_size,
        additions=additions,
    )


def for_this_cpu(target: BuildTarget, text: str) -> BuildTarget:
    """A target that this machine was to choose, without what a hypervisor hides of its CPU."""
    if "mcpu" in text or "mtriple" in text or target.host.attrs.get("mcpu") is None:
        return target
    missing = missing_features(target.cpu_features())
    return target.without(missing) if missing else target


def _compute_dtype(asked: str, fmt: Format, target: BuildTarget) -> str:
    if asked not in ("auto", "float16", "float32"):
        raise UsageError(f"--compute-dtype {asked!r}: give auto, float16 or float32.")
    if asked == "float16" and fmt.dtype != "float16":
        raise UsageError(
            f"--compute-dtype float16: {fmt.name} computes in float32; "
            f"choose {fmt.name.replace('f32', 'f16')}."
        )
    return usual_dtype(fmt, target.kind) if asked == "auto" else asked
