"""Weights under other names, inside other files, or not all there: read, or the cause named."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import assert_holds
from safetensors.numpy import save_file
from support.checkpoints import Tensors, hf_name, write_config, write_hf_bin, write_pth

from mlc_rwkv_world.checkpoint import open_checkpoint
from mlc_rwkv_world.checkpoint.names import canonical_name, speller
from mlc_rwkv_world.errors import CheckpointError


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    message = str(raised.value)
    assert str(path) in message
    assert "ownload" not in message
    return message


def torch_tensors(world: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in world.items()}


# Names


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_forward_module.", "_orig_mod.", "model.", "base_model.model.", "rwkv."),
        *("_forward_module._orig_mod.", "module.module.", "pl_module.net.model."),
    ],
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, world: Tensors, prefix: str) -> None:
    wrapped = {prefix + name: array for name, array in world.items()}
    assert_holds(open_checkpoint(write_pth(tmp_path / "w.pth", wrapped)), world)
    (tmp_path / "m").mkdir()
    write_config(tmp_path / "m", world)
    save_file({prefix + hf_name(k): v for k, v in world.items()}, tmp_path / "m/model.safetensors")
    assert_holds(open_checkpoint(tmp_path / "m"), world)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("blocks.0._orig_mod.att.key.weight", "blocks.0.attention.key.weight"),
        ("module.blocks.1._fsdp_wrapped_module.ln1.bias", "blocks.1.ln1.bias"),
        ("blocks.2._checkpoint_wrapped_module.ffn.time_mix_k",
         "blocks.2.feed_forward.time_mix_key"),
        ("_orig_mod.module.head.weight", "head.weight"),
        ("a.b.c.emb.weight", "embeddings.weight"),
        ("transformer.h.0.weight", "transformer.h.0.weight"),
        ("layers.0.att.time_first", "layers.0.att.time_first"),
        ("layers.0.attn.r_proj.weight", "blocks.0.attention.receptance.weight"),
        ("", ""),
    ],
)  # fmt: skip
def test_wrappers_at_any_depth(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical


def test_two_models_in_one_set_of_names(tmp_path: Path, world: Tensors) -> None:
    both = {f"{model}.{name}": array for model in ("ema", "model") for name, array in world.items()}
    message = refusal(write_pth(tmp_path / "w.pth", both))
    assert "'model.emb.weight', which w.pth holds already as 'ema.emb.weight'" in message


@pytest.mark.parametrize(
    ("rename", "shown"),
    [
        (lambda name: name, "blocks.1.ffn.time_mix_k"),
        (lambda name: f"module.{name}", "module.blocks.1.ffn.time_mix_k"),
        (hf_name, "rwkv.blocks.1.feed_forward.time_mix_key"),
        (lambda name: f"_orig_mod.{hf_name(name)}",
         "_orig_mod.rwkv.blocks.1.feed_forward.time_mix_key"),
    ],
)  # fmt: skip
def test_errors_spell_names_as_the_file_does(
    tmp_path: Path, world: Tensors, rename: Callable[[str], str], shown: str
) -> None:
    lost = {rename(k): v for k, v in world.items() if k != "blocks.1.ffn.time_mix_k"}
    assert f"lacks the tensors '{shown}'" in refusal(write_pth(tmp_path / "w.pth", lost))
    flat = {
        rename(k): v if k != "blocks.1.ffn.time_mix_k" else v[..., :1] for k, v in world.items()
    }
    assert f"tensor '{shown}' has shape [1, 1, 1]" in refusal(write_pth(tmp_path / "w.pth", flat))


def test_the_head_stands_beside_hugging_faces_other_names(world: Tensors) -> None:
    names = {canonical_name(hf_name(name)): hf_name(name) for name in world}
    del names["head.weight"]
    assert speller(names)("head.weight") == "head.weight"
    assert speller({})("embeddings.weight") == "embeddings.weight"


# Training files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights},
        lambda weights: {"epoch": 3, "model": weights, "lr": 1e-4},
        lambda weights: {"state_dict": weights, "epoch": 3, "done": False, "note": None},
        lambda weights: {"step": 1, "state": {"model": weights}, "betas": (0.9, 0.99)},
        lambda weights: {"module": {f"module.{name}": tensor for name, tensor in weights.items()},
                         "shapes": [tensor.shape for tensor in weights.values()]},
        lambda weights: {"mine": weights, "dtype": torch.bfloat16, "rng": torch.get_rng_state()},
        lambda weights: weights | {"epoch": 3},
    ],
)  # fmt: skip
def test_weights_are_read_from_the_entry_that_holds_them(
    tmp_path: Path, world: Tensors, wrap: Callable[[dict[str, torch.Tensor]], Any]
) -> None:
    torch.save(wrap(torch_tensors(world)), tmp_path / "w.pth")
    assert_holds(open_checkpoint(tmp_path / "w.pth"), world)


@pytest.mark.slow
def test_weights_beside_a_real_optimizers_state(tmp_path: Path, world: Tensors) -> None:
    weights = torch_tensors(world)
    small = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([small])
    small.sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "weights": weights}, tmp_path / "w.pth")
    assert_holds(open_checkpoint(tmp_path / "w.pth"), world)


@pytest.mark.slow
def test_several_models_are_named_with_the_command_that_saves_one(
    tmp_path: Path, world: Tensors
) -> None:
    weights = torch_tensors(world)
    torch.save({"ema": weights, "step": 3, "in": {"model": weights | {}}}, tmp_path / "it's.pth")
    message = refusal(tmp_path / "it's.pth")
    assert "holds several models, in its entries 'ema', 'in.model'. Save the one" in message
    _, *arguments = shlex.split(message[message.index("python -c") :])
    subprocess.run([sys.executable, *arguments], check=True)
    assert_holds(open_checkpoint(tmp_path / "it's.resaved.pth"), world)


def test_no_model_in_any_entry(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"wte.weight": torch.ones(2)}}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "entry 'epoch' is a int, expected a tensor" in message
    assert "no entry of the file ('epoch', 'model') holds an RWKV's tensors" in message


# Tensors that are not there


def without(world: Tensors, *endings: str) -> Tensors:
    return {name: array for name, array in world.items() if not name.endswith(endings)}


def lora(names: str = "lora_{}") -> Tensors:
    return {
        f"blocks.{i}.att.{part}.{names.format(side)}": np.zeros((2, 4), np.float32)
        for i in range(2)
        for part in ("key", "value")
        for side in "AB"
    }


@pytest.mark.parametrize("names", ["lora_{}", "lora_{}.default.weight", "lora_{}.weight"])
def test_lora_alone_and_unmerged(tmp_path: Path, world: Tensors, names: str) -> None:
    path = tmp_path / "w.pth"
    norms = {name: array for name, array in world.items() if ".ln" in name}
    message = refusal(write_pth(path, norms | lora(names)))
    assert f"holds a LoRA ('blocks.0.att.key.{names.format('A')}'" in message
    assert "alone, without the weights of the model that it was trained on. Merge" in message
    message = refusal(write_pth(path, world | lora(names)))
    assert "beside the weights that it changes, not merged into them. Merge" in message


def test_adapter_folder_of_peft(tmp_path: Path) -> None:
    adapter = {f"base_model.model.rwkv.{name}": array for name, array in lora().items()}
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    assert "holds a LoRA ('base_model.model.rwkv.blocks.0.att.key.lora_A'" in refusal(tmp_path)


@pytest.mark.parametrize("lost", ["head.weight", "emb.weight"])
def test_head_tied_to_the_embedding(tmp_path: Path, world: Tensors, lost: str) -> None:
    part = without(world, lost)
    other = "emb.weight" if lost == "head.weight" else "head.weight"
    path = write_pth(tmp_path / "w.pth", part)
    message = refusal(path)
    assert f"lacks the tensors '{lost}'. If its head is tied" in message
    assert f"so that '{other}' is both" in message
    advice = json.loads(message[message.index("{") : message.index("}") + 1])
    # What the message advises works.
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(advice))
    path.rename(tmp_path / "m" / "w.pth")
    assert_holds(open_checkpoint(tmp_path / "m"), part | {lost: world[other]})


def test_a_head_of_its_own_is_never_tied(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "m", world, tie_word_embeddings=True)
    assert_holds(open_checkpoint(folder), world)


def test_embeddings_normalized_already(tmp_path: Path, world: Tensors) -> None:
    part = without(world, "ln0.weight", "ln0.bias")
    message = refusal(write_pth(tmp_path / "w.pth", part))
    assert "lacks the tensors 'blocks.0.ln0.weight', 'blocks.0.ln0.bias': its emb" in message
    assert "normalized already" in message and "converted from" in message


def test_one_shard_of_several(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "m", world, shards=2)
    message = refusal(folder / "pytorch_model-00001-of-00002.bin")
    assert "is shard 1 of 2. Give the folder" in message


def test_a_part_that_was_saved_as_a_whole_file(tmp_path: Path, world: Tensors) -> None:
    message = refusal(write_pth(tmp_path / "w.pth", without(world, "ln1.bias", "head.weight")))
    assert "The file is whole and was saved without them" in message


def test_many_names_lacking_and_many_there(tmp_path: Path) -> None:
    """Time in proportion to both, not to their product."""
    names = ["emb.weight", *(f"blocks.{i}.ffn.key.weight" for i in range(1024))]
    names += [f"blocks.0.ffn.{i}" for i in range(10_000)]
    table, end = {}, 0
    for name in names:
        shape = [65536, 1] if name == "emb.weight" else [1, 1]
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * shape[0]]}
        end += 4 * shape[0]
    path = tmp_path / "w.safetensors"
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(end))
    began = time.process_time()
    assert "lacks the tensors 'blocks.0.ln0.weight'" in refusal(path)
    assert time.process_time() - began < 5


# JSON as editors save it


def test_config_with_a_byte_order_mark(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "m", world, shards=2)
    for path in (folder / "config.json", folder / "pytorch_model.bin.index.json"):
        path.write_bytes(path.read_text().encode("utf-8-sig"))
    assert_holds(open_checkpoint(folder), world)
    config = folder / "config.json"
    config.write_bytes(config.read_text("utf-8-sig").encode("utf-16"))
    assert "config.json is not in UTF-8 (invalid start byte at byte 0)" in refusal(folder)
