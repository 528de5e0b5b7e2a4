"""Which blocks compute in float32: spelling, presets, and what a configuration accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.modules import small_config

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fp32_layers import parse, spelled
from mlc_rwkv_world.versions.table import settled


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("0", (0,)),
        ("2,0", (0, 2)),
        ("0,2-4", (0, 2, 3, 4)),
        ("1-3, 2-5", (1, 2, 3, 4, 5)),
        ("all", (0, 1, 2, 3, 4, 5)),
        ("none", ()),
    ],
)
def test_spelling(text: str, blocks: tuple[int, ...]) -> None:
    assert parse(text, 6) == blocks
    assert parse(spelled(blocks), 6) == blocks


@pytest.mark.parametrize("text", ["", "x", "3-1", "-1", "0;1", "1-", "0,,1", "ALL", "٣"])
def test_no_block(text: str) -> None:
    with pytest.raises(UsageError, match="--fp32-layers"):
        parse(text, 6)


@pytest.mark.parametrize("text", ["6", "0-6", "5,100"])
def test_a_block_that_is_not_there(text: str) -> None:
    with pytest.raises(UsageError, match="the model has blocks 0 to 5"):
        parse(text, 6)


@pytest.mark.parametrize(
    "version, layers, width, blocks",
    [
        (4, 12, 768, ()),
        (4, 24, 1024, ()),
        (4, 24, 2048, (0,)),
        (4, 32, 2560, ()),
        (4, 32, 4096, ()),
        (7, 24, 2048, ()),
    ],
)
def test_presets(version: int, layers: int, width: int, blocks: tuple[int, ...]) -> None:
    """What a version knows of a shape, unless the configuration says."""
    shape = {"model_version": version, "num_hidden_layers": layers, "hidden_size": width}
    assert settled(small_config(**shape)).fp32_layers == blocks
    assert settled(small_config(**shape, fp32_layers=[3, 1, 1])).fp32_layers == (1, 3)
    assert settled(small_config(**shape, fp32_layers=())).fp32_layers == ()


def test_configuration_goes_through_json() -> None:
    config = small_config(fp32_layers=[1], float32_keys=False)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("value", [[2], [-1], ["0"], [True], "0", 0, {"0": 1}])
def test_bad_field(value: Any) -> None:
    with pytest.raises(UsageError, match="fp32_layers"):
        small_config(fp32_layers=value)
