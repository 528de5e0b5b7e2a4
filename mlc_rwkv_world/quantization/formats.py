"""The quantization formats, named as mlc_llm names them: q<bits>f<compute bits>[_layout]."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Format:
    """What a format stores and what it computes in.

    Matrices, the embedding and the head are stored as `bits`-bit integers in groups of 32 with
    one scale of `dtype` each, or as `dtype` where bits is 0. Vectors are stored as float32.
    `dtype` is also the type that products compute in, unless a target says otherwise.
    """

    name: str
    bits: int
    dtype: str

    @property
    def rescales(self) -> bool:
        """Whether weights are stored for a residual that is halved on its way (float16)."""
        return self.dtype == "float16"


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("q0f32", 0, "float32"),
        Format("q0f16", 0, "float16"),
        Format("q4f32_1", 4, "float32"),
        Format("q4f16_1", 4, "float16"),
        Format("q8f32_1", 8, "float32"),
        Format("q8f16_1", 8, "float16"),
    )
}


def format_named(name: str) -> Format:
    """The format of this name; UsageError names those that there are."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UsageError(
            f"--quantization {name!r} is not known; choose one of {', '.join(FORMATS)}."
        ) from None
