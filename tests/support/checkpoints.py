"""Random RWKV-4 World checkpoints, and writers for every layout that they come in.

`random_world` gives float32 arrays under BlinkDL's names, in BlinkDL's shapes; the
writers store such a dictionary with the real tools (torch, safetensors). torch is
imported only by the functions that write.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Tensors = dict[str, np.ndarray]

DTYPES = ("float32", "float16", "bfloat16")

_HF_PARTS = {
    "emb": "embeddings",
    "ln0": "pre_ln",
    "att": "attention",
    "ffn": "feed_forward",
    "time_mix_k": "time_mix_key",
    "time_mix_v": "time_mix_value",
    "time_mix_r": "time_mix_receptance",
}


def random_world(
    num_hidden_layers: int = 2,
    hidden_size: int = 64,
    vocab_size: int = 65536,
    seed: int = 0,
) -> Tensors:
    """A checkpoint of random weights whose activations and logits stay O(1).

    LayerNorm weights lie near 1, matrices are scaled by their input width, the outputs
    of both mixes by depth, `time_decay` spreads over [-6, 3], `time_first` over [0, 1].
    """
    rng = np.random.default_rng(seed)
    layers, width = num_hidden_layers, hidden_size

    def normal(rows: int, columns: int, std: float) -> np.ndarray:
        matrix = rng.standard_normal((rows, columns), dtype=np.float32)
        matrix *= np.float32(std)
        return matrix

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    tensors: Tensors = {"emb.weight": normal(vocab_size, width, 0.5)}

    def layer_norm(name: str) -> None:
        tensors[f"{name}.weight"] = uniform(0.8, 1.2, width)
        tensors[f"{name}.bias"] = uniform(-0.1, 0.1, width)

    residual = (2 * layers) ** -0.5
    for i in range(layers):
        block = f"blocks.{i}"
        if i == 0:
            layer_norm(f"{block}.ln0")
        layer_norm(f"{block}.ln1")
        layer_norm(f"{block}.ln2")
        tensors[f"{block}.att.time_decay"] = rng.permutation(
            np.linspace(-6.0, 3.0, width, dtype=np.float32)
        )
        tensors[f"{block}.att.time_first"] = uniform(0.0, 1.0, width)
        for part in "kvr":
            tensors[f"{block}.att.time_mix_{part}"] = uniform(0.0, 1.0, 1, 1, width)
        for part in ("key", "value", "receptance"):
            tensors[f"{block}.att.{part}.weight"] = normal(width, width, width**-0.5)
        tensors[f"{block}.att.output.weight"] = normal(width, width, residual * width**-0.5)
        for part in "kr":
            tensors[f"{block}.ffn.time_mix_{part}"] = uniform(0.0, 1.0, 1, 1, width)
        inner = 4 * width
        tensors[f"{block}.ffn.key.weight"] = normal(inner, width, width**-0.5)
        tensors[f"{block}.ffn.receptance.weight"] = normal(width, width, width**-0.5)
        tensors[f"{block}.ffn.value.weight"] = normal(width, inner, residual * inner**-0.5)
    layer_norm("ln_out")
    tensors["head.weight"] = normal(vocab_size, width, width**-0.5)
    return tensors


def hf_name(name: str) -> str:
    """The Hugging Face name of a tensor: `emb.weight` is `rwkv.embeddings.weight`."""
    parts = [_HF_PARTS.get(part, part) for part in name.removeprefix("rwkv.").split(".")]
    renamed = ".".join(parts)
    return renamed if renamed == "head.weight" else f"rwkv.{renamed}"


def canonical_name(name: str) -> str:
    """The name under which `open_checkpoint` offers a tensor, of either naming."""
    return hf_name(name).removeprefix("rwkv.")


def hf_config(tensors: Mapping[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    """A config.json as the World conversions on the hub have it; `changes` replace fields."""
    vocab_size, hidden_size = tensors["emb.weight"].shape
    layers = 1 + max(
        int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))
    )
    config: dict[str, Any] = {
        "architectures": ["RwkvForCausalLM"],
        "attention_hidden_size": hidden_size,
        "bos_token_id": 0,
        "context_length": 4096,
        "eos_token_id": 0,
        "hidden_size": hidden_size,
        "intermediate_size": None,
        "layer_norm_epsilon": 1e-05,
        "model_type": "rwkv",
        "num_hidden_layers": layers,
        "rescale_every": 6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    return config | changes


def _to_torch(
    tensors: Mapping[str, np.ndarray], dtype: str, *, hf: bool
) -> dict[str, torch.Tensor]:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    return {
        hf_name(name) if hf else name: torch.from_numpy(np.asarray(array, order="C")).to(kind)
        for name, array in tensors.items()
    }


def as_raw(tensors: Mapping[str, np.ndarray], dtype: str) -> Tensors:
    """The bytes of each tensor as they are stored in `dtype`, as one axis of uint8."""
    import torch

    return {
        name: tensor.reshape(-1).view(torch.uint8).numpy()
        for name, tensor in _to_torch(tensors, dtype, hf=False).items()
    }


def as_stored(tensors: Mapping[str, np.ndarray], dtype: str) -> Tensors:
    """The float32 values that are left after storing `tensors` as `dtype`."""
    import torch

    return {
        name: tensor.to(torch.float32).numpy()
        for name, tensor in _to_torch(tensors, dtype, hf=False).items()
    }


def write_pth(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "float32") -> Path:
    """A BlinkDL `.pth`: one `torch.save` of a plain dictionary, names without prefix."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(_to_torch(tensors, dtype, hf=False), path)
    return path


def write_config(folder: Path, tensors: Mapping[str, np.ndarray], **changes: Any) -> Path:
    """Only the config.json of a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(hf_config(tensors, **changes), indent=2), encoding="utf-8")
    return path


def _deal(names: Iterable[str], shards: int) -> list[list[str]]:
    """`names` in `shards` runs, in order, none of them empty."""
    pending = list(names)
    bounds = [len(pending) * i // shards for i in range(shards + 1)]
    return [pending[low:high] for low, high in itertools.pairwise(bounds)]


def _write_index(folder: Path, name: str, weight_map: Mapping[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    (folder / name).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_hf_bin(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
    *,
    shards: int = 1,
    **config: Any,
) -> Path:
    """A folder with config.json and `pytorch_model.bin`, or `shards` of it and an index."""
    import torch

    write_config(folder, tensors, torch_dtype=dtype, **config)
    stored = _to_torch(tensors, dtype, hf=True)
    if shards == 1:
        torch.save(stored, folder / "pytorch_model.bin")
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_deal(stored, shards), start=1):
        shard = f"pytorch_model-{number:05d}-of-{shards:05d}.bin"
        torch.save({name: stored[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    total = sum(tensor.nbytes for tensor in stored.values())
    _write_index(folder, "pytorch_model.bin.index.json", weight_map, total)
    return folder


def write_hf_safetensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
    *,
    shards: int = 1,
    **config: Any,
) -> Path:
    """A folder with config.json and `model.safetensors`, or `shards` of it and an index."""
    from safetensors.torch import save_file

    write_config(folder, tensors, torch_dtype=dtype, **config)
    stored = _to_torch(tensors, dtype, hf=True)
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_deal(stored, shards), start=1):
        shard = f"model-{number:05d}-of-{shards:05d}.safetensors"
        part = {name: stored[name] for name in names}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    total = sum(tensor.nbytes for tensor in stored.values())
    _write_index(folder, "model.safetensors.index.json", weight_map, total)
    return folder


def read_hf(folder: Path) -> Tensors:
    """The tensors of a folder with `model.safetensors`, under BlinkDL's names."""
    from safetensors.numpy import load_file

    blinkdl = {part: name for name, part in _HF_PARTS.items()}

    def original(name: str) -> str:
        return ".".join(blinkdl.get(part, part) for part in name.removeprefix("rwkv.").split("."))

    stored = load_file(folder / "model.safetensors")
    return {original(name): np.asarray(value, np.float32) for name, value in stored.items()}
