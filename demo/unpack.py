"""Unpack the trained model as a Hugging Face folder: `python demo/unpack.py FOLDER`.

The committed file holds float16 tensors under Hugging Face names. Its embedding and head have
one row for each token of `used_tokens`, in that order, and one more, the last, that all other
tokens of the World vocabulary share.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save, save_file

MODEL = Path(__file__).parent / "model.safetensors.xz"
VOCAB_SIZE = 65536
SHARED_ROWS = ("rwkv.embeddings.weight", "head.weight")

Tensors = dict[str, NDArray[np.generic]]


def pack(tensors: Tensors, path: Path = MODEL) -> int:
    """Write the compact tensors and return the size of the file in bytes."""
    path.write_bytes(lzma.compress(save(tensors), preset=9))
    return path.stat().st_size


def read(path: Path = MODEL) -> Tensors:
    """The compact tensors as they are committed, `used_tokens` among them."""
    tensors: Tensors = load(lzma.decompress(path.read_bytes()))
    return tensors


def expand(tensors: Tensors) -> Tensors:
    """Give every token of the vocabulary its own row."""
    used = tensors["used_tokens"]
    full = {name: tensor for name, tensor in tensors.items() if name != "used_tokens"}
    for name in SHARED_ROWS:
        rows = full[name]
        table = np.repeat(rows[-1:], VOCAB_SIZE, axis=0)
        table[used] = rows[:-1]
        full[name] = table
    return full


def layers(tensors: Mapping[str, object]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("rwkv.blocks.")})


def config(tensors: Tensors, dtype: str) -> dict[str, object]:
    """config.json, as the World folders on the hub have it."""
    hidden_size = tensors["rwkv.ln_out.weight"].shape[0]
    return {
        "architectures": ["RwkvForCausalLM"],
        "attention_hidden_size": hidden_size,
        "bos_token_id": 0,
        "context_length": 1024,
        "eos_token_id": 0,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "layer_norm_epsilon": 1e-5,
        "model_type": "rwkv",
        "num_hidden_layers": layers(tensors),
        "rescale_every": 6,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def unpack(folder: Path, *, dtype: str = "float32", path: Path = MODEL) -> Path:
    """Write config.json and model.safetensors into `folder`, and return it.

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
    parser = argparse.ArgumentParser(description="Unpack the model as a Hugging Face folder.")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    arguments = parser.parse_args()
    try:
        print(unpack(arguments.folder, dtype=arguments.dtype))
    except FileExistsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
