"""A model as it is computed, whichever file it comes from."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.numerics.weights import StoredWeights
from mlc_rwkv_world.storage import Format


@dataclasses.dataclass(frozen=True)
class Model:
    """A configuration and format, the type that products compute in, and the weights.

    `int8` says that a CPU is to round the inputs of products to bytes, which is measured beside.
    """

    config: ModelConfig
    format: Format
    compute_dtype: str
    weights: StoredWeights
    int8: bool = False

    @property
    def narrow(self) -> bool:
        """Whether it computes in float16."""
        return self.compute_dtype == "float16"
