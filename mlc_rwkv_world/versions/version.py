"""What a version of RWKV declares, and the layers above ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.kernels import rules as shared_rules
from mlc_rwkv_world.kernels.emitter import Rule
from mlc_rwkv_world.kernels.table import NAMED, Kernel
from mlc_rwkv_world.model import shared_parts
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import Field, initial_rows
from mlc_rwkv_world.model.shared_parts import Decomposition
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.versions.references import Reference


@dataclasses.dataclass(frozen=True)
class Version:
    """What the layers above need of one version.

    `fields` are what a layer of its state consists of; `halved_outputs` names the weights that
    `rescale_every` divides, relative to their block. `fp32_presets` are the blocks that compute in
    float32 where nobody says otherwise, for models of (blocks, channels) that are known to need it.
    `parts` says what each part means, `operations` which kernels its own named operations have,
    `anywhere` which kernels every target has for parts, `rules` which a kind of target has;
    `reference` computes all in NumPy. `tuned_rows` says where a tuned state stands in a state, for
    versions that have such.
    """

    model: Callable[[ModelConfig, Format, str], Any]
    fields: Callable[[ModelConfig], Sequence[Field]]
    halved_outputs: Sequence[str]
    fp32_presets: Mapping[tuple[int, int], tuple[int, ...]]
    parts: Mapping[str, Decomposition]
    operations: Mapping[str, Kernel]
    anywhere: Mapping[str, Rule]
    rules: Mapping[str, Mapping[str, Rule]]
    reference: Reference
    tuned_rows: Callable[[ModelConfig], TunedRows] | None = None

    def initial_rows(self, config: ModelConfig) -> tuple[float, ...]:
        """The values that fill each row of a fresh state's layer, [R]."""
        return initial_rows(self.fields(config))

    def all_parts(self) -> Mapping[str, Decomposition]:
        """What its parts mean, and those that it shares with others."""
        return {**shared_parts.DECOMPOSITIONS, **self.parts}

    def all_operations(self) -> Mapping[str, Kernel]:
        """The kernels of the operations that its parts decompose into."""
        return {**NAMED, **self.operations}

    def all_rules(self, kind: str) -> Mapping[str, Rule]:
        """The kernels that a kind of target has for them."""
        shared = {**shared_rules.ANYWHERE, **shared_rules.RULES.get(kind, {})}
        return {**shared, **self.anywhere, **self.rules.get(kind, {})}
