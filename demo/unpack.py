"""Unpack a trained model as a Hugging Face folder: `python demo/unpack.py FOLDER --version 7`.

A committed file holds float16 tensors under Hugging Face names. Its embedding and head have
one row for each token of `used_tokens`, in that order, and one more, the last, that all other
tokens of the World vocabulary share.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save, save_file

FILES = {version: Path(__file__).parent / f"rwkv{version}.safetensors.xz" for version in ("4", "7")}
VOCAB_SIZE = 65536

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Layout:
    """How the folders of a version on the hub name tensors, and what else config.json says."""

    embedding: str
    head: str
    norm: str
    blocks: str
    config: Mapping[str, object]

    def size(self, tensors: Mapping[str, NDArray[np.generic]]) -> int:
        return len(tensors[self.norm])

    def layers(self, tensors: Mapping[str, object]) -> int:
        names = (name.removeprefix(self.blocks) for name in tensors if name.startswith(self.blocks))
        return len({name.split(".")[0] for name in names})


RWKV4 = Layout(
    "rwkv.embeddings.weight",
    "head.weight",
    "rwkv.ln_out.weight",
    "rwkv.blocks.",
    {
        "architectures": ["RwkvForCausalLM"],
        "context_length": 1024,
        "layer_norm_epsilon": 1e-5,
        "model_type": "rwkv",
        "rescale_every": 6,
    },
)
# As flash-linear-attention writes it, which the folders on the hub were made with.
RWKV7 = Layout(
    "model.embeddings.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.",
    {
        "architectures": ["RWKV7ForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "head_dim": 64,
        "hidden_act": "sqrelu",
        "hidden_ratio": 4.0,
        "max_position_embeddings": 2048,
        "model_type": "rwkv7",
        "norm_bias": True,
        "norm_eps": 1e-5,
        "norm_first": True,
        "num_heads": None,
    },
)


def layout(tensors: Mapping[str, object]) -> Layout:
    return next(layout for layout in (RWKV4, RWKV7) if layout.norm in tensors)


def pack(tensors: Tensors, path: Path) -> int:
    """Write the compact tensors and return the size of the file in bytes."""
    path.write_bytes(lzma.compress(save(tensors), preset=9))
    return path.stat().st_size


def read(path: Path) -> Tensors:
    """The compact tensors as they are committed, `used_tokens` among them."""
    tensors: Tensors = load(lzma.decompress(path.read_bytes()))
    return tensors


def expand(tensors: Tensors) -> Tensors:
    """Give every token of the vocabulary its own row."""
    used = tensors["used_tokens"]
    full = {name: tensor for name, tensor in tensors.items() if name != "used_tokens"}
    for name in (layout(tensors).embedding, layout(tensors).head):
        rows = full[name]
        table = np.repeat(rows[-1:], VOCAB_SIZE, axis=0)
        table[used] = rows[:-1]
        full[name] = table
    return full


def config(tensors: Tensors, dtype: str) -> dict[str, object]:
    """config.json, as the folders on the hub have it."""
    found = layout(tensors)
    size, layers = found.size(tensors), found.layers(tensors)
    fields: dict[str, object] = {
        **found.config,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": size,
        "intermediate_size": 4 * size,
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }
    if found is RWKV4:
        fields["attention_hidden_size"] = size
    else:
        for field, which in (("decay", "w"), ("a", "a"), ("v", "v"), ("gate", "g")):
            rank = tensors[f"model.layers.1.attn.{which}_lora.lora.0.weight"].shape[0]
            fields[f"{field}_low_rank_dim"] = rank
        fields["value_dim"] = [size] * layers
    return dict(sorted(fields.items()))


def unpack(folder: Path, path: Path, *, dtype: str = "float32") -> Path:
    """Write config.json and model.safetensors of the packed `path` into `folder`, and return it.

    The weights are float16 values, so `dtype` "float32" and "float16" hold the same numbers.
    Raises FileExistsError where another model is in the folder.
    """
    tensors = {name: tensor.astype(dtype) for name, tensor in expand(read(path)).items()}
    text = json.dumps(config(tensors, dtype), indent=2) + "\n"
    written = folder / "config.json"
    if (
        folder.exists()
        and any(folder.iterdir())
        and not (written.is_file() and written.read_text(encoding="utf-8") == text)
    ):
        raise FileExistsError(f"{folder} holds something else: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(text, encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack a model as a Hugging Face folder.")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--version", choices=FILES, default="4", help="of RWKV (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    arguments = parser.parse_args()
    try:
        print(unpack(arguments.folder, FILES[arguments.version], dtype=arguments.dtype))
    except FileExistsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
