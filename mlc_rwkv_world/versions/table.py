"""The versions of RWKV that can be built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.kernels import rules as shared_rules
from mlc_rwkv_world.kernels.emitter import Rule
from mlc_rwkv_world.models import shared_parts
from mlc_rwkv_world.models.config import ModelConfig
from mlc_rwkv_world.models.shared_parts import Decomposition
from mlc_rwkv_world.storage import Format
from mlc_rwkv_world.versions.references import Reference
from mlc_rwkv_world.versions.rwkv4 import cpu as rwkv4_cpu
from mlc_rwkv_world.versions.rwkv4 import cuda as rwkv4_cuda
from mlc_rwkv_world.versions.rwkv4 import model as rwkv4
from mlc_rwkv_world.versions.rwkv4 import parts as rwkv4_parts
from mlc_rwkv_world.versions.rwkv4 import reference as rwkv4_reference


@dataclasses.dataclass(frozen=True)
class Version:
    """What the layers above need of one version.

    `initial_rows` are the values that fill each row of a fresh state's layer, [R];
    `halved_outputs` names the weights that `rescale_every` divides, relative to their block.
    `parts` says what each part means, `rules` which kernels a kind of target has for them;
    `reference` computes it in NumPy.
    """

    model: Callable[[ModelConfig, Format, str], Any]
    initial_rows: Sequence[float]
    halved_outputs: Sequence[str]
    parts: Mapping[str, Decomposition]
    rules: Mapping[str, Mapping[str, Rule]]
    reference: Reference

    def all_parts(self) -> Mapping[str, Decomposition]:
        """What its parts mean, and those that it shares with others."""
        return {**shared_parts.DECOMPOSITIONS, **self.parts}

    def all_rules(self, kind: str) -> Mapping[str, Rule]:
        """The kernels that a kind of target has for them."""
        shared = {**shared_rules.ANYWHERE, **shared_rules.RULES.get(kind, {})}
        return {**shared, **self.rules.get(kind, {})}


VERSIONS: dict[int, Version] = {
    4: Version(
        model=rwkv4.RWKV4,
        initial_rows=rwkv4.INITIAL_ROWS,
        halved_outputs=("attention.output.weight", "feed_forward.value.weight"),
        parts=rwkv4_parts.DECOMPOSITIONS,
        rules={"llvm": rwkv4_cpu.RULES, "cuda": rwkv4_cuda.RULES},
        reference=rwkv4_reference,
    ),
}


def version_of(number: int) -> Version:
    """The version with this number; UsageError where it cannot be built."""
    try:
        return VERSIONS[number]
    except KeyError:
        known = ", ".join(str(key) for key in VERSIONS)
        raise UsageError(
            f"RWKV-{number} is not supported yet; this package builds RWKV {known}."
        ) from None
