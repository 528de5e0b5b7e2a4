"""What a module of this room says of one version's tensors, by their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlc_rwkv_world.checkpoint.stored import StoredTensor


class Sizes(Protocol):
    """The sizes that the shapes of tensors follow from; see `ModelConfig`."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def decay_low_rank_dim(self) -> int: ...
    @property
    def a_low_rank_dim(self) -> int: ...
    @property
    def v_low_rank_dim(self) -> int: ...
    @property
    def gate_low_rank_dim(self) -> int: ...
    @property
    def mix_low_rank_dim(self) -> int: ...
    @property
    def attention_gate(self) -> bool: ...


class Layout(Protocol):
    """A module: MODEL_TYPES is what config.json calls such a model, the usual name first.

    RESCALE_EVERY is how often the residual of a model in float16 is halved where config.json does
    not say, 0 for never. MEASURED are the matrices of block 0 whose shapes `measured` reads, UNUSED
    tensors of a block that files may have and the model does not use. FIELDS are those of
    config.json beyond every version's that must agree with the tensors, and what `ModelShape` calls
    them.
    """

    MODEL_TYPES: tuple[str, ...]
    RESCALE_EVERY: int
    MEASURED: tuple[str, ...]
    UNUSED: tuple[str, ...]
    FIELDS: dict[str, str]

    def adapted(
        self, path: Path, tensors: Mapping[str, StoredTensor]
    ) -> Mapping[str, StoredTensor]:
        """The tensors as the model has them, where files have them in other ways.

        Raises CheckpointError, which `path` begins, where that cannot be.
        """

    def measured(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
        """Sizes beyond those of every version, by the field of `ModelShape`."""

    def block_shapes(self, sizes: Sizes, number: int) -> dict[str, tuple[int, ...]]:
        """The tensors of one block beside its first normalizations, in the model's order."""
