"""What products with packed weights compute in: chosen by target, and settable."""

from __future__ import annotations

from mlc_rwkv_world.artifact.abi import BATCH_DECODE, DECODE, PREFILL
from mlc_rwkv_world.compiler.target import BuildTarget
from mlc_rwkv_world.errors import TargetError, UsageError
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, multiplied_as_bytes
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.storage import Format

# The exported function of each use.
FUNCTIONS = {
    "decode": DECODE,
    "batch": BATCH_DECODE,
    "prefill": PREFILL,
}
AUTO = "auto"
_ALL = (AUTO, INT8, BFLOAT16, FLOAT32)


def resolve(text: str, target: BuildTarget, fmt: Format, compute_dtype: str) -> dict[str, str]:
    """The arithmetic of each use; nothing where no weights are packed.

    `text` is `auto`; one of `int8`, `bfloat16` and `float32`; or some of them by use,
    "decode=int8,...". `auto` multiplies quantized weights as bytes where the CPU can, and rounds
    nothing else. Raises UsageError for other texts and TargetError where the CPU or the format
    cannot do it.
    """
    if target.kind != "llvm" or compute_dtype != FLOAT32:
        if text != AUTO:
            raise UsageError(
                f"--arithmetic {text}: there is a choice on a CPU that computes in float32 only."
            )
        return {}
    bytes_suit = multiplied_as_bytes(fmt.matrix) and multiplies_bytes(target.target)
    best = INT8 if bytes_suit else FLOAT32
    chosen = dict.fromkeys(FUNCTIONS, AUTO)
    for part in text.split(","):
        use, equals, value = part.partition("=")
        if (value if equals else use) not in _ALL:
            raise UsageError(f"--arithmetic {text!r}: choose auto, int8, bfloat16 or float32.")
        if equals and use not in FUNCTIONS:
            raise UsageError(f"--arithmetic {text!r}: {use!r} is none of {', '.join(FUNCTIONS)}.")
        chosen |= {use: value} if equals else dict.fromkeys(FUNCTIONS, use)
    if INT8 in chosen.values():
        _require_int8(target, fmt)
    if BFLOAT16 in chosen.values():
        _require_bfloat16(text, chosen, fmt)
    return {use: best if value == AUTO else value for use, value in chosen.items()}


def _require_int8(target: BuildTarget, fmt: Format) -> None:
    if not multiplied_as_bytes(fmt.matrix):
        why = "is not multiplied as bytes" if fmt.matrix.bits else "stores no integers"
        raise UsageError(
            f"--arithmetic int8: {fmt.name} {why}; choose q4f16_1 or q8f16_1, or float32."
        )
    if not multiplies_bytes(target.target):
        raise TargetError(
            "--arithmetic int8: it needs a CPU with AVX2, or with NEON's dot products; "
            f"{target.describe()} has neither. Choose float32."
        )


def _require_bfloat16(text: str, chosen: dict[str, str], fmt: Format) -> None:
    if fmt.matrix.bits:
        raise UsageError(
            f"--arithmetic {text}: {fmt.name} stores integers, which int8 multiplies faster; "
            "choose int8 or float32, or a format that stores none, as q0f16."
        )
    if set(chosen.values()) != {BFLOAT16}:
        raise UsageError(
            f"--arithmetic {text}: every use reads the same weights in memory, so bfloat16 goes "
            "for all of them or none."
        )


def by_function(chosen: dict[str, str]) -> dict[str, str]:
    """The arithmetic of each exported function."""
    return {FUNCTIONS[use]: value for use, value in chosen.items()}
