"""Random World checkpoints, and writers for every layout that they come in.

`random_world` (RWKV-4) and `random_rwkv7` give float32 arrays under BlinkDL's names, in BlinkDL's
shapes; the writers store such a dictionary with the real tools (torch, safetensors). torch is
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
    "time_mix_g": "time_mix_gate",
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


# Ranks of the small products of w, a, v and g, all different.
RANKS = {"w": 32, "a": 64, "v": 96, "g": 128}
# Those of RWKV-6.
RANK_OF_MIXES, RANK_OF_DECAY = 32, 64


def random_rwkv7(
    num_hidden_layers: int = 2,
    hidden_size: int = 128,
    vocab_size: int = 65536,
    seed: int = 0,
    *,
    head_size: int = 64,
    ranks: Mapping[str, int] = RANKS,
    own_value: bool = True,
) -> Tensors:
    """An RWKV-7 of random weights whose activations and logits stay O(1).

    Spread as `random_world`'s; decays are between 0.55 and 0.998. `own_value` gives block 0 the
    tensors v0, v1 and v2 that BlinkDL's files have there, and nothing uses.
    """
    rng = np.random.default_rng(seed)
    layers, width, inner = num_hidden_layers, hidden_size, 4 * hidden_size
    residual = (2 * layers) ** -0.5
    tensors: Tensors = {}

    def normal(name: str, rows: int, columns: int, std: float) -> None:
        matrix = rng.standard_normal((rows, columns), dtype=np.float32)
        tensors[name] = matrix * np.float32(std)

    def uniform(name: str, low: float, high: float, *shape: int) -> None:
        tensors[name] = rng.uniform(low, high, shape or (1, 1, width)).astype(np.float32)

    def layer_norm(name: str) -> None:
        uniform(f"{name}.weight", 0.8, 1.2, width)
        uniform(f"{name}.bias", -0.1, 0.1, width)

    normal("emb.weight", vocab_size, width, 0.5)
    for i in range(layers):
        block, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        for ln in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            layer_norm(f"{block}.{ln}")
        for part in "rwkvag":
            uniform(f"{att}.x_{part}", 0, 1)
        for part, rank in ranks.items():
            if part == "v" and i == 0 and not own_value:
                continue
            if part != "g":
                uniform(f"{att}.{part}0", *((-6, 2) if part == "w" else (-1, 1)))
            normal(f"{att}.{part}1", width, rank, width**-0.5)
            normal(f"{att}.{part}2", rank, width, rank**-0.5)
        uniform(f"{att}.k_k", 0.7, 1)
        uniform(f"{att}.k_a", 0.8, 1.2)
        uniform(f"{att}.r_k", -0.2, 0.2, width // head_size, head_size)
        for part in ("receptance", "key", "value"):
            normal(f"{att}.{part}.weight", width, width, width**-0.5)
        normal(f"{att}.output.weight", width, width, residual * width**-0.5)
        layer_norm(f"{att}.ln_x")
        uniform(f"{ffn}.x_k", 0, 1)
        normal(f"{ffn}.key.weight", inner, width, width**-0.5)
        normal(f"{ffn}.value.weight", width, inner, residual * inner**-0.5)
    layer_norm("ln_out")
    normal("head.weight", vocab_size, width, width**-0.5)
    return tensors


def random_rwkv5(
    num_hidden_layers: int = 2,
    hidden_size: int = 128,
    vocab_size: int = 65536,
    seed: int = 0,
    *,
    version: str = "5.2",
    head_size: int = 64,
    tuned: bool = False,
) -> Tensors:
    """An RWKV-5 ("5.0", "5.1", "5.2") or RWKV-6 ("6.0"), spread as `random_world`'s.

    Decays spread from 0 to 1; `tuned` adds the tensors of a tuned state.
    """
    rng = np.random.default_rng(seed)
    layers, width = num_hidden_layers, hidden_size
    heads, inner = width // head_size, int(3.5 * width) // 32 * 32
    residual = (2 * layers) ** -0.5
    tensors: Tensors = {}

    def normal(name: str, std: float, *shape: int, mean: float = 0.0) -> None:
        values = mean + std * rng.standard_normal(shape)
        tensors[name] = values.astype(np.float32)

    def uniform(name: str, low: float, high: float, *shape: int) -> None:
        tensors[name] = rng.uniform(low, high, shape or (1, 1, width)).astype(np.float32)

    def layer_norm(name: str) -> None:
        uniform(f"{name}.weight", 0.8, 1.2, width)
        uniform(f"{name}.bias", -0.1, 0.1, width)

    normal("emb.weight", 0.5, vocab_size, width)
    for i in range(layers):
        block, att, ffn = f"blocks.{i}", f"blocks.{i}.att", f"blocks.{i}.ffn"
        for ln in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            layer_norm(f"{block}.{ln}")
        by_head = (heads,) if version in ("5.0", "5.1") else (heads, head_size)
        if version == "6.0":
            for part in "xwkvrg":
                uniform(f"{att}.time_maa_{part}", 0, 1)
            normal(f"{att}.time_maa_w1", width**-0.5, width, 5 * RANK_OF_MIXES)
            normal(f"{att}.time_maa_w2", 0.1, 5, RANK_OF_MIXES, width)
            normal(f"{att}.time_decay", 1.5, 1, 1, width, mean=-2)
            normal(f"{att}.time_decay_w1", width**-0.5, width, RANK_OF_DECAY)
            normal(f"{att}.time_decay_w2", 0.1, RANK_OF_DECAY, width)
        else:
            for part in "kvr" if version == "5.0" else "kvrg":
                uniform(f"{att}.time_mix_{part}", 0, 1)
            normal(f"{att}.time_decay", 1.5, *by_head, mean=-2)
        bonus = "time_first" if version == "5.0" else "time_faaaa"
        normal(f"{att}.{bonus}", 0.5, *by_head)
        gate = () if version == "5.0" else ("gate",)
        for part in ("receptance", "key", "value", *gate):
            normal(f"{att}.{part}.weight", width**-0.5, width, width)
        normal(f"{att}.output.weight", residual * width**-0.5, width, width)
        layer_norm(f"{att}.ln_x")
        if tuned:
            normal(f"{att}.time_state", 0.5, heads, head_size, head_size)
        for part in "kr":
            uniform(f"{ffn}.time_{'maa' if version == '6.0' else 'mix'}_{part}", 0, 1)
        normal(f"{ffn}.key.weight", width**-0.5, inner, width)
        normal(f"{ffn}.receptance.weight", width**-0.5, width, width)
        normal(f"{ffn}.value.weight", residual * inner**-0.5, width, inner)
    layer_norm("ln_out")
    normal("head.weight", width**-0.5, vocab_size, width)
    return tensors


def random_small(version: int, seed: int = 0) -> Tensors:
    """Weights in the shapes of the trained RWKV-4 and 7, or of two blocks of RWKV-5.2 and 6."""
    if version == 4:
        return random_world(4, 128, seed=seed)
    if version == 7:
        return random_rwkv7(4, 128, seed=seed, ranks=dict.fromkeys("wavg", 32))
    return random_rwkv5(2, 128, seed=seed, version={5: "5.2", 6: "6.0"}[version])


# fla's name for a part of a tensor's name in an RWKV-7.
_FLA_PARTS = {
    "emb": "embeddings",
    "blocks": "layers",
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "ln_out": "norm",
    "att": "attn",
    "receptance": "r_proj",
    "ln_x": "g_norm",
    "output": "o_proj",
}


def fla_tensors(tensors: Mapping[str, np.ndarray], *, one_mix: bool = False) -> Tensors:
    """An RWKV-7 under fla's names and in its shapes; with `one_mix` as old conversions have it."""
    found: Tensors = {}
    for name, array in tensors.items():
        if name == "head.weight":
            found["lm_head.weight"] = array
            continue
        parts = [_FLA_PARTS.get(part, part) for part in name.split(".")]
        last = parts[-1]
        if parts[0] == "layers" and parts[2] == "attn":
            if parts[3] in ("key", "value"):
                parts[3] = f"{parts[3][0]}_proj"
            elif re.fullmatch("[wavg][12]", last):
                parts[3:] = [f"{last[0]}_lora", "lora", "0" if last[1] == "1" else "2", "weight"]
                array = array.T
            elif re.fullmatch("[wav]0", last):
                parts[3:] = [f"{last[0]}_lora", "lora", "2", "bias"]
        mixes = parts[2:3] == ["attn"] and last.startswith("x_")
        found[".".join(["model", *parts])] = (
            array if mixes or array.ndim == 2 else array.reshape(-1)
        )
    if one_mix:
        for name in [name for name in found if name.endswith(".attn.x_r")]:
            stem = name.removesuffix("x_r")
            rows = [found.pop(f"{stem}x_{part}").reshape(-1) for part in "rwkvag"]
            found[f"{stem}x_x"] = np.stack(rows)
    return found


def fla_config(tensors: Mapping[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    """A config.json as fla-hub's conversions have it, ids that are wrong for World among it."""
    vocab_size, hidden_size = tensors["emb.weight"].shape
    ranks = {part: tensors[f"blocks.1.att.{part}1"].shape[1] for part in "wavg"}
    config: dict[str, Any] = {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn": None,
        "attn_mode": "chunk",
        "a_low_rank_dim": ranks["a"],
        "decay_low_rank_dim": ranks["w"],
        "gate_low_rank_dim": ranks["g"],
        "v_low_rank_dim": ranks["v"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "fuse_cross_entropy": True,
        "fuse_norm": True,
        "head_dim": tensors["blocks.0.att.r_k"].shape[1],
        "hidden_act": "sqrelu",
        "hidden_ratio": 4.0,
        "hidden_size": hidden_size,
        "initializer_range": 0.006,
        "intermediate_size": 4 * hidden_size,
        "max_position_embeddings": 2048,
        "norm_bias": True,
        "norm_eps": 1e-05,
        "norm_first": True,
        "num_heads": None,
        "num_hidden_layers": sum(name.endswith(".ln1.weight") for name in tensors),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "value_dim": [hidden_size] * sum(name.endswith(".ln1.weight") for name in tensors),
        "vocab_size": vocab_size,
    }
    return config | changes


def write_fla(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
    *,
    shards: int = 1,
    one_mix: bool = False,
    **config: Any,
) -> Path:
    """An RWKV-7 as fla's conversions store it: config.json and safetensors."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    content = fla_config(tensors, torch_dtype=dtype, **config)
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    kind: torch.dtype = getattr(torch, dtype)
    stored = {
        name: torch.from_numpy(np.array(array, order="C")).to(kind)
        for name, array in fla_tensors(tensors, one_mix=one_mix).items()
        # fla has nothing of the sort in block 0.
        if not name.startswith("model.layers.0.attn.v_lora.")
    }
    return _write_safetensors(folder, stored, shards)


def hf_name(name: str) -> str:
    """The Hugging Face name of a tensor: `emb.weight` is `rwkv.embeddings.weight`."""
    parts = [_HF_PARTS.get(part, part) for part in name.removeprefix("rwkv.").split(".")]
    renamed = ".".join(parts)
    return renamed if renamed == "head.weight" else f"rwkv.{renamed}"


def canonical_name(name: str) -> str:
    """The name under which `open_checkpoint` offers a tensor, of either naming."""
    found = hf_name(name).removeprefix("rwkv.")
    return re.sub(r"(attention\.[wavg][12])$", r"\1.weight", found)


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
    write_config(folder, tensors, torch_dtype=dtype, **config)
    return _write_safetensors(folder, _to_torch(tensors, dtype, hf=True), shards)


def _write_safetensors(folder: Path, stored: dict[str, torch.Tensor], shards: int) -> Path:
    from safetensors.torch import save_file

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
