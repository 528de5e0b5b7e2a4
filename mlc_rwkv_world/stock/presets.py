"""Configurations of the published World models, for commands that take a preset's name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

# Blocks and channels of each size, by version; of RWKV-7 also the ranks of w, a, v and g. What
# configurations of RWKV-5 and 6 leave out follows from these.
_SIZES_4 = {
    "0.1b": (12, 768),
    "0.4b": (24, 1024),
    "1.5b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
}
_SIZES_5 = {
    "0.1b": (12, 768),
    "0.4b": (24, 1024),
    "1.5b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
}
_SIZES_6 = {
    "1.6b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
    "14b": (61, 4096),
}
_SIZES_7 = {
    "0.1b": (12, 768, (64, 64, 32, 128)),
    "0.4b": (24, 1024, (64, 64, 32, 128)),
    "1.5b": (24, 2048, (96, 96, 64, 256)),
    "2.9b": (32, 2560, (96, 96, 64, 320)),
    "7.2b": (32, 4096, (128, 128, 96, 480)),
}


def presets() -> dict[str, dict[str, Any]]:
    """A `config.json` for each size, by the preset's name."""
    return {
        **{
            f"rwkv4_world_{size}": {
                "architectures": ["RwkvForCausalLM"],
                "model_type": "rwkv",
                "attention_hidden_size": width,
                "layer_norm_epsilon": 1e-5,
                "rescale_every": 6,
                **_common(layers, width),
            }
            for size, (layers, width) in _SIZES_4.items()
        },
        **{
            f"rwkv{version}_world_{size}": {
                "architectures": [f"Rwkv{version}ForCausalLM"],
                "model_type": f"rwkv{version}",
                "head_size": 64,
                "head_size_divisor": 8,
                "layer_norm_epsilon": 1e-5,
                "rescale_every": 6,
                **_common(layers, width),
                "intermediate_size": None,
            }
            for version, sizes in ((5, _SIZES_5), (6, _SIZES_6))
            for size, (layers, width) in sizes.items()
        },
        **{
            f"rwkv7_world_{size}": {
                "architectures": ["RWKV7ForCausalLM"],
                "model_type": "rwkv7",
                "head_dim": 64,
                "norm_eps": 1e-5,
                "decay_low_rank_dim": ranks[0],
                "a_low_rank_dim": ranks[1],
                "v_low_rank_dim": ranks[2],
                "gate_low_rank_dim": ranks[3],
                **_common(layers, width),
            }
            for size, (layers, width, ranks) in _SIZES_7.items()
        },
    }


def _common(layers: int, width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": 65536,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def add_presets(model_preset: ModuleType) -> None:
    """Adds them to the host's table."""
    model_preset.MODEL_PRESETS.update(presets())
