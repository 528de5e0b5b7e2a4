"""Configurations of the published World models, for commands that take a preset's name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

# Blocks and channels of each size.
_SIZES = {
    "0.1b": (12, 768),
    "0.4b": (24, 1024),
    "1.5b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
}


def presets() -> dict[str, dict[str, Any]]:
    """A `config.json` for each size, by the preset's name."""
    return {
        f"rwkv4_world_{size}": {
            "architectures": ["RwkvForCausalLM"],
            "model_type": "rwkv",
            "num_hidden_layers": layers,
            "hidden_size": width,
            "attention_hidden_size": width,
            "intermediate_size": 4 * width,
            "vocab_size": 65536,
            "layer_norm_epsilon": 1e-5,
            "rescale_every": 6,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        for size, (layers, width) in _SIZES.items()
    }


def add_presets(model_preset: ModuleType) -> None:
    """Adds them to the host's table."""
    model_preset.MODEL_PRESETS.update(presets())
