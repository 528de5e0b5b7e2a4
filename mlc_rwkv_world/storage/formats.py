"""The quantization formats, named as mlc_llm names them: q<bits>f<compute bits>[_layout]."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.storage.stored import IndivisibleRow, Stored


@dataclasses.dataclass(frozen=True)
class Format:
    """What a format stores and what it computes in.

    Matrices, the embedding and the head are stored as `matrix` says; `factors`, where it is not
    None, is how the two factors of a product of low rank are: 8 bits where `matrix` has fewer,
    since they are few and their errors multiply. Vectors are float32. `dtype` is the type that
    products compute in, unless a target says otherwise. A kind of weight that is to be stored in a
    way of its own gets a field beside `matrix`, which a model hands to its layers.
    """

    name: str
    matrix: Stored
    dtype: str
    factors: Stored | None = None

    @property
    def low_rank(self) -> Stored:
        """How the two factors of a product of low rank are stored."""
        return self.factors or self.matrix

    @property
    def rescales(self) -> bool:
        """Whether weights are stored for a residual that is halved on its way (float16)."""
        return self.dtype == "float16"

    def refusal(self, error: IndivisibleRow) -> UsageError:
        """The error for a model with such rows."""
        return UsageError(
            f"{self.name} stores rows in {error.pieces}; rows of {error.inner} do not divide. "
            "Use q0f16 or q0f32."
        )


def _integers(bits: int, scales: str) -> Stored:
    return Stored.symmetric(bits, scales, group=32)


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("q0f32", Stored(0, "float32"), "float32"),
        Format("q0f16", Stored(0, "float16"), "float16"),
        Format("q4f32_1", _integers(4, "float32"), "float32", _integers(8, "float32")),
        Format("q4f16_1", _integers(4, "float16"), "float16", _integers(8, "float16")),
        Format("q8f32_1", _integers(8, "float32"), "float32"),
        Format("q8f16_1", _integers(8, "float16"), "float16"),
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
