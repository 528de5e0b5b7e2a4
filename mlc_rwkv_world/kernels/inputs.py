"""What the inputs of products are."""

from __future__ import annotations

import enum


class Inputs(enum.Enum):
    """How the inputs of a product with a packed weight lie: as they are, or rounded.

    BYTES are records of groups, see `activation`; BFLOAT16 is bits, see `bfloat16`.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    BYTES = "bytes"
