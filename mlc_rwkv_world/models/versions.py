"""The versions of RWKV that can be built; a new one is a file beside `rwkv4.py` and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.models import rwkv4
from mlc_rwkv_world.models.config import ModelConfig
from mlc_rwkv_world.storage import Format


@dataclasses.dataclass(frozen=True)
class Version:
    """What the layers above need of one version.

    `initial_rows` are the values that fill each row of a fresh state's layer, [R];
    `halved_outputs` names the weights that `rescale_every` divides, relative to their block.
    """

    model: Callable[[ModelConfig, Format, str], Any]
    initial_rows: Sequence[float]
    halved_outputs: Sequence[str]


VERSIONS: dict[int, Version] = {
    4: Version(
        model=rwkv4.RWKV4,
        initial_rows=rwkv4.INITIAL_ROWS,
        halved_outputs=("attention.output.weight", "feed_forward.value.weight"),
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
