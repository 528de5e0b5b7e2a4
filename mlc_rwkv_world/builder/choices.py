"""What a build is asked for, settled as far as that goes without the checkpoint."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.builder.options import AUTO, Options
from mlc_rwkv_world.compiler import arithmetic as arithmetic_of
from mlc_rwkv_world.compiler.additions import Additions
from mlc_rwkv_world.compiler.export import compute_dtype as usual_dtype
from mlc_rwkv_world.compiler.target import BuildTarget, resolve
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.runtime.cpu import missing_features
from mlc_rwkv_world.storage import Format, format_named


@dataclasses.dataclass(frozen=True)
class Choices:
    """What `options` mean for any checkpoint. `arithmetic` is that of products on a CPU, by use.

    `additions` are what the library has for a host.
    """

    options: Options
    target: BuildTarget
    format: Format
    compute_dtype: str
    arithmetic: dict[str, str]
    additions: Additions | None


def choose(options: Options, additions: Additions | None) -> Choices:
    """The choices that a user's words mean on this machine. Raises UsageError, TargetError."""
    target = for_this_cpu(resolve(options.target), options.target)
    fmt = format_named(options.quantization)
    computes = _compute_dtype(options.compute_dtype, fmt, target)
    arithmetic = arithmetic_of.resolve(options.arithmetic, target, fmt, computes)
    return Choices(options, target, fmt, computes, arithmetic, additions)


def for_this_cpu(target: BuildTarget, text: str) -> BuildTarget:
    """A target that this machine was to choose, without what a hypervisor hides of its CPU."""
    if "mcpu" in text or "mtriple" in text or target.host.attrs.get("mcpu") is None:
        return target
    missing = missing_features(target.cpu_features())
    return target.without(missing) if missing else target


def _compute_dtype(asked: str, fmt: Format, target: BuildTarget) -> str:
    if asked == "float16" and fmt.dtype != "float16":
        raise UsageError(
            f"--compute-dtype float16: {fmt.name} computes in float32; "
            f"choose {fmt.name.replace('f32', 'f16')}."
        )
    return usual_dtype(fmt, target.kind) if asked == AUTO else asked
