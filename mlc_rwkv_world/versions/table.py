"""The versions of RWKV that can be built."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.rwkv4.version import RWKV4
from mlc_rwkv_world.versions.rwkv5.version import RWKV5
from mlc_rwkv_world.versions.rwkv6.version import RWKV6
from mlc_rwkv_world.versions.rwkv7.version import RWKV7
from mlc_rwkv_world.versions.version import Version

VERSIONS: dict[int, Version] = {4: RWKV4, 5: RWKV5, 6: RWKV6, 7: RWKV7}


def version_of(number: int) -> Version:
    """The version with this number; UsageError where it cannot be built."""
    try:
        return VERSIONS[number]
    except KeyError:
        known = ", ".join(str(key) for key in VERSIONS)
        raise UsageError(
            f"RWKV-{number} is not supported yet; this package builds RWKV {known}."
        ) from None


def settled(config: ModelConfig) -> ModelConfig:
    """The configuration as its version has it.

    The blocks in float32 are those that its shape needs, where it names none; the residual is not
    halved where no weights are made for that; and as many heads as their size makes, whatever a
    configuration says.
    """
    version, blocks = version_of(config.model_version), config.fp32_layers
    if blocks is None:
        shape = (config.num_hidden_layers, config.hidden_size)
        blocks = version.fp32_presets.get(shape, ())
    every = config.rescale_every if version.halved_outputs else 0
    heads = max(1, config.hidden_size // config.head_size)
    return dataclasses.replace(config, fp32_layers=blocks, rescale_every=every, num_heads=heads)
