"""The quantization formats, named as mlc_llm names them: q<bits>f<compute bits>[_layout]."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.storage.stored import IndivisibleRow, Stored


@dataclasses.dataclass(frozen=True)
class Format:
    """What a format stores and what it computes in.

    Matrices, the embedding and the head are stored as `matrix` says; vectors as float32. `dtype` is
    the type that products compute in, unless a target says otherwise. A kind of weight that is to
    be stored in a way of its own gets a field beside `matrix`, which a model hands to its layers.
    """

    name: str
    matrix: Stored
    dtype: str

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


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("q0f32", Stored(0, "float32"), "float32"),
        Format("q0f16", Stored(0, "float16"), "float16"),
        Format("q4f32_1", Stored.symmetric(4, "float32", group=32), "float32"),
        Format("q4f16_1", Stored.symmetric(4, "float16", group=32), "float16"),
        Format("q8f32_1", Stored.symmetric(8, "float32", group=32), "float32"),
        Format("q8f16_1", Stored.symmetric(8, "float16", group=32), "float16"),
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
