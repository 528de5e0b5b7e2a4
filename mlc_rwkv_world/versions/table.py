"""The versions of RWKV that can be built."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.versions.rwkv4.version import RWKV4
from mlc_rwkv_world.versions.rwkv7.version import RWKV7
from mlc_rwkv_world.versions.version import Version

VERSIONS: dict[int, Version] = {4: RWKV4, 7: RWKV7}


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
    """The configuration with the blocks in float32 that its shape needs, where it names none."""
    if config.fp32_layers is not None:
        return config
    presets = version_of(config.model_version).fp32_presets
    shape = (config.num_hidden_layers, config.hidden_size)
    return dataclasses.replace(config, fp32_layers=presets.get(shape, ()))
