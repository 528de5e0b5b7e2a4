"""Writes an RWKV-7 checkpoint as the programs of `cpu_peers.py` read it.

    python benchmarks/peer_files.py MODEL.pth --output DIR --quantize Q4_0 Q8_0

`DIR/MODEL.pth` is for rwkv.cpp's own converter, without block 0's v0, v1 and v2, which BlinkDL's
files have, nothing uses, and rwkv.cpp aborts on. `DIR/MODEL-f16.gguf` is for llama.cpp; it needs
the package `gguf`. `--quantize` makes others of that, by the package `llama-cpp-python`.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from mlc_rwkv_world.tokenizer import VOCAB_SIZE, WorldTokenizer

UNUSED = tuple(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
# From the end of a name in a checkpoint to llama.cpp's, in which a weight ends in ".weight".
_OUTSIDE = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_IN_BLOCK = {
    **{f"ln1.{kind}": f"attn_norm.{kind}" for kind in ("weight", "bias")},
    **{f"ln2.{kind}": f"attn_norm_2.{kind}" for kind in ("weight", "bias")},
    **{f"att.ln_x.{kind}": f"time_mix_ln.{kind}" for kind in ("weight", "bias")},
    **{
        f"att.{role}.weight": f"time_mix_{role}.weight"
        for role in ("key", "value", "receptance", "output")
    },
    **{
        f"att.{name}": f"time_mix_{name}.weight" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")
    },
    **{f"ffn.{role}.weight": f"channel_mix_{role}.weight" for role in ("key", "value")},
    "ffn.x_k": "channel_mix_lerp_k.weight",
}
# Stored as [from, to] in a checkpoint, and as [to, from] there.
_FACTORS = {f"att.{n}{i}": f"time_mix_{n}{i}.weight" for n in "wavg" for i in "12"}
_TYPES = {"Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quantize", nargs="*", default=[], choices=_TYPES)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    tensors = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    if "blocks.0.att.r_k" not in tensors:
        raise SystemExit(f"{options.checkpoint} is no RWKV-7.")
    used = {name: tensor for name, tensor in tensors.items() if name not in UNUSED}
    plain = options.output / options.checkpoint.name
    if plain.resolve() == options.checkpoint.resolve():
        raise SystemExit("Give --output another folder than the checkpoint's.")
    torch.save(used, plain)
    target = options.output / f"{options.checkpoint.stem}-f16.gguf"
    _write_gguf(used, target)
    for kind in options.quantize:
        _quantize(target, options.output / f"{options.checkpoint.stem}-{kind}.gguf", kind)


def _write_gguf(tensors: dict[str, Any], path: Path) -> None:
    blocks = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    width = tensors["emb.weight"].shape[1]
    ranks = {n: tensors[f"blocks.{blocks - 1}.att.{n}1"].shape[1] for n in "wavg"}
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(tensors["blocks.0.att.r_k"].shape[1])
    writer.add_decay_lora_rank(ranks["w"])
    writer.add_iclr_lora_rank(ranks["a"])
    writer.add_value_residual_mix_lora_rank(ranks["v"])
    writer.add_gate_lora_rank(ranks["g"])
    writer.add_feed_forward_length(tensors["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, tensors["emb.weight"].shape[0])
    for name, source in _OUTSIDE.items():
        _add(writer, source, tensors[name])
    for i in range(blocks):
        block = f"blocks.{i}"
        for name, target in _IN_BLOCK.items():
            if f"{block}.{name}" in tensors:
                _add(writer, f"blk.{i}.{target}", tensors[f"{block}.{name}"])
        for name, target in _FACTORS.items():
            if f"{block}.{name}" in tensors:
                _add(writer, f"blk.{i}.{target}", tensors[f"{block}.{name}"].T)
        mixes = [tensors[f"{block}.att.x_{n}"].reshape(1, 1, width) for n in "rwkvag"]
        _add(writer, f"blk.{i}.time_mix_lerp_fused.weight", torch.stack(mixes))
        if i == 0:
            # llama.cpp wants them there, in the shapes of a's, and does not use them.
            _add(writer, "blk.0.time_mix_v0.weight", tensors[f"{block}.att.a0"])
            for factor in "12":
                name = f"time_mix_v{factor}.weight"
                _add(writer, f"blk.0.{name}", tensors[f"{block}.att.a{factor}"].T)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, name: str, tensor: Any) -> None:
    """A matrix as float16, all else as float32; axes of one value go, but those of ratios."""
    array = tensor.float().numpy()
    if "r_k" in name:
        array = array.reshape(-1)
    if "lerp" not in name:
        array = array.squeeze()
    matrix = array.ndim == 2 and min(array.shape) > 1
    writer.add_tensor(name, np.ascontiguousarray(array, np.float16 if matrix else np.float32))


def _add_vocabulary(writer: Any, size: int) -> None:
    world = WorldTokenizer.default()
    tokens, types = [b"<s>"], [gguf.TokenType.CONTROL]
    for token in range(1, size):
        known = token < min(VOCAB_SIZE, world.token_count + 1)
        text = repr(world.id_to_bytes(token))[2:-1] if known else f"[PAD{token}]"
        tokens.append(text.encode())
        types.append(gguf.TokenType.NORMAL if known else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _quantize(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, _TYPES[kind])
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if failed:
        raise SystemExit(f"llama.cpp cannot make {target}.")


if __name__ == "__main__":
    main()
