"""Each thing that is not a complete RWKV-4 World checkpoint has one clear error of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import assert_holds
from safetensors.numpy import save_file
from support.checkpoints import (
    Tensors,
    hf_name,
    random_world,
    write_config,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)

from mlc_rwkv_world.checkpoint import find_vocabulary, open_checkpoint
from mlc_rwkv_world.checkpoint.version import rwkv_version
from mlc_rwkv_world.errors import CheckpointError, NotFoundError


def refusal(path: Path) -> str:
    """The message with which `path` is refused; it names the file and fits a terminal."""
    with pytest.raises(CheckpointError) as raised:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.read(name)
    message = str(raised.value)
    assert path.name in message
    assert len(message) < 1000
    assert message.isprintable()
    return message


def save(path: Path, tensors: dict[str, Any]) -> Path:
    """Saves arrays, or whatever else, as torch does."""
    content = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in tensors.items()
    }
    torch.save(content, path)
    return path


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.pth is not there"):
        open_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\).*Download or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
            "is a git-lfs pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b'{"error": "Entry not found"}', "is JSON text.*server's error"),
        (b"\0" * 4096, "begins with zeros only.*not finished"),
        (b"GGUF\3\0\0\0", "GGUF file of llama.cpp"),
        (b"fmgg\x65\0\0\0", "ggml file of rwkv.cpp"),
        (b"\x1f\x8b\x08\0", "gzip-compressed: unpack"),
        (b"Rar!\x1a\7", r"begins with b'Rar!\\x1a\\x07'.*expected a torch file"),
        (b"P", "begins with b'P' and is 1 bytes long"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert re.search(message, refusal(path))


@pytest.mark.slow
def test_old_torch_layout_says_how_to_save_it_again(tmp_path: Path, world: Tensors) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    path = folder / "old.pth"
    tensors = {name: torch.from_numpy(array.copy()) for name, array in world.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    message = refusal(path)
    assert "torch's old layout (before 1.6)" in message
    program, *arguments = shlex.split(message[message.index("python -c") :])
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert_holds(open_checkpoint(folder / "old.resaved.pth"), world)


def test_bare_pickle_is_not_opened(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"emb.weight": [1.0]}))
    assert "bare Python pickle" in refusal(tmp_path / "w.pth")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(2))
    torch.jit.save(traced, tmp_path / "w.pt")
    assert "TorchScript archive" in refusal(tmp_path / "w.pt")


def test_zip_archive_with_the_checkpoint_inside(tmp_path: Path, world: Tensors) -> None:
    write_pth(tmp_path / "w.pth", world)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "w.pth", "w.pth")
    assert re.search("not one that torch.save wrote.*'w.pth'", refusal(tmp_path / "all.zip"))


def test_archive_packed_again(tmp_path: Path, world: Tensors) -> None:
    write_pth(tmp_path / "w.pth", world)
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as source,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "is compressed" in refusal(tmp_path / "packed.pth")


def test_folder_in_place_of_a_file_and_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    assert "not a regular file" in refusal(tmp_path / "pipe.pth")
    (tmp_path / "m" / "pytorch_model.bin").mkdir(parents=True)
    assert "not a regular file" in refusal(tmp_path / "m")


@pytest.mark.parametrize("name", ["config.json", "rwkv_vocab_v20230424.txt", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_what_leads_out_of_a_folder_or_never_ends(
    tmp_path: Path, world: Tensors, name: str, kind: str
) -> None:
    """Archives hold pipes and links too."""
    folder = write_hf_bin(tmp_path / "m", world)
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "precious").write_text("{}")
        path.symlink_to(tmp_path / "precious" if kind == "link" else "/dev/zero")
    with pytest.raises(CheckpointError, match=f"{name} is "):
        open_checkpoint(folder)
        find_vocabulary(folder)


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.pth")
    assert "not a regular file" in refusal(tmp_path)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "models--a--b" / "snapshots" / "0123", world)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / f"blob-of-{path.name}")
        path.symlink_to(blobs / f"blob-of-{path.name}")
    assert_holds(open_checkpoint(folder), world)


def test_file_that_may_not_be_read(tmp_path: Path, world: Tensors) -> None:
    path = write_pth(tmp_path / "w.pth", world)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refusal(path)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path, world: Tensors) -> None:
    path = write_pth(tmp_path / "w.pth", world)
    checkpoint = open_checkpoint(path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="became shorter while"):
        checkpoint.read("head.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        checkpoint.read("head.weight")


# Other models


@pytest.mark.parametrize(
    ("mark", "version"),
    [
        ("blocks.0.att.ln_x.weight", 5),
        ("rwkv.blocks.0.attention.ln_x.weight", 5),
        ("blocks.0.att.time_maa_k", 6),
    ],
)
def test_later_versions_by_number(tmp_path: Path, world: Tensors, mark: str, version: int) -> None:
    later = {"blocks.1.att.ln_x.weight": np.ones(4, np.float32)}
    path = save(tmp_path / "w.pth", world | later | {mark: np.ones(4, np.float32)})
    assert rwkv_version(later | {mark: None}) == version
    assert re.search("lacks the tensors|time_first. has shape", refusal(path))


@pytest.mark.parametrize("write", [save, lambda path, tensors: save_file(tensors, path)])
def test_another_model(tmp_path: Path, write: Callable[[Path, Any], object]) -> None:
    gpt2 = {
        name: np.ones((2, 2), np.float32)
        for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.ln_1.weight")
    }
    write(tmp_path / "gpt2", gpt2)
    assert re.search(
        "is not an RWKV model: its tensors are named '.*emb.weight", refusal(tmp_path / "gpt2")
    )


@pytest.mark.parametrize(
    ("marks", "what"),
    [
        (["blocks.0.ffn.s_emb.weight", "blocks.0.ffn.s_emb_x", "blocks.0.ffn.s0"],
         "RWKV-7a (DeepEmbed), going by its tensors ('blocks.0.ffn.s_emb.weight')"),
        (["blocks.0.ffn.s_emb.weight", "blocks.0.qkv.qq.weight"], "RWKV-7b (DeepEmbed and att"),
        (["blocks.0.att.time_maa_r", "blocks.0.att.time_aaaaa"], "RWKV-7 (rc4a or near it)"),
        (["blocks.0.att.time_maa_r", "blocks.0.att.time_misc_kkk"], "RWKV-7 (rc4a or near it)"),
        (["blocks.1.rosa_qkv.emb0", "blocks.0.att.r_k"], "RWKV-8 (ROSA)"),
        (["model.layers.0.attn.x_r", "model.layers.1.attn.q_proj.weight"], "a hybrid of RWKV-7"),
    ],
)  # fmt: skip
def test_variants_by_name(tmp_path: Path, world: Tensors, marks: list[str], what: str) -> None:
    """Each holds the marks of a later version too, and is not called by that."""
    later = dict.fromkeys(["blocks.0.att.ln_x.weight", *marks], np.ones(4, np.float32))
    message = refusal(save(tmp_path / "w.pth", world | later))
    assert what in message
    assert "is not built here" in message


def test_hybrid_by_its_configuration(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "m", world, attn={"layers": [3]})
    assert "config.json says attn \"{'layers': [3]}\": the model is a hybrid" in refusal(folder)
    open_checkpoint(write_hf_bin(tmp_path / "plain", world, attn=None))


@pytest.mark.parametrize("vocab", [50277, 50280, 50304])
def test_pile_and_raven_by_name(tmp_path: Path, vocab: int) -> None:
    tensors = random_world(1, 4, vocab)
    path = write_pth(tmp_path / "later.pth", tensors | {"blocks.0.att.r_k": np.ones(4)})
    assert f"Pile or Raven checkpoint (vocabulary {vocab})" in refusal(path)
    path = write_pth(tmp_path / "w.pth", tensors)
    message = refusal(path)
    assert re.search(f"Pile or Raven checkpoint .vocabulary {vocab}.*20B_tokenizer", message)
    assert "65536" in message


def test_vocabulary_of_another_size(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "w.pth", random_world(1, 4, 65529))
    assert re.search("vocabulary of 65529, expected.* 65536", refusal(path))


# Keys, shapes, types, values


def test_missing_tensors(tmp_path: Path, world: Tensors) -> None:
    part = {k: v for k, v in world.items() if k not in ("head.weight", "blocks.1.ln2.bias")}
    assert re.search(
        r"lacks the tensors 'blocks.1.ln2.bias', 'head.weight'",
        refusal(write_pth(tmp_path / "w", part)),
    )
    for gone in ("emb.weight", "blocks.0.ffn.key.weight"):
        part = {name: array for name, array in world.items() if name != gone}
        assert "lacks the tensors" in refusal(write_pth(tmp_path / "w", part))


def test_missing_block(tmp_path: Path, world: Tensors) -> None:
    part = {name: array for name, array in world.items() if not name.startswith("blocks.0.")}
    assert "tensors of the blocks '1', expected every block" in refusal(
        write_pth(tmp_path / "w", part)
    )
    far = world | {"blocks.999999999.ln1.weight": np.ones(4, np.float32)}
    assert "'999999999'" in refusal(write_pth(tmp_path / "w", far))


def test_unknown_tensors(tmp_path: Path, world: Tensors) -> None:
    more = world | {"blocks.0.att.gate.weight": np.ones(4, np.float32)}
    assert "has tensors that RWKV-4 does not: 'blocks.0.att.gate.weight'" in refusal(
        write_pth(tmp_path / "w", more)
    )


def test_the_same_tensor_under_two_names(tmp_path: Path, world: Tensors) -> None:
    twice = world | {"rwkv.embeddings.weight": world["emb.weight"]}
    message = refusal(write_pth(tmp_path / "w.pth", twice))
    assert "'rwkv.embeddings.weight'" in message
    assert "already as 'emb.weight'" in message


def test_wrong_shapes(tmp_path: Path, world: Tensors) -> None:
    for name, shape in {
        "blocks.1.att.key.weight": (4, 5),
        "blocks.0.ln1.weight": (5,),
        "blocks.0.att.time_mix_k": (1, 2, 2),
        "head.weight": (65535, 4),
        "emb.weight": (65536,),
        "ln_out.bias": (),
    }.items():
        changed = world | {name: np.ones(shape, np.float32)}
        message = refusal(write_pth(tmp_path / "w.pth", changed))
        assert str(list(shape)) in message
        assert "expected" in message


def test_wrong_types(tmp_path: Path, world: Tensors) -> None:
    changed = world | {"head.weight": np.ones((65536, 4), np.int8)}
    assert "'head.weight' holds int8; expected float32" in refusal(
        save(tmp_path / "w.pth", changed)
    )
    save_file(changed, tmp_path / "w.safetensors")
    assert "'head.weight' holds int8" in refusal(tmp_path / "w.safetensors")
    eight_bits = {"head.weight": torch.ones(2).to(torch.float8_e4m3fn)}
    from safetensors.torch import save_file as save_torch_file

    save_torch_file(eight_bits, tmp_path / "f8.safetensors")
    assert "of type 'F8_E4M3'" in refusal(tmp_path / "f8.safetensors")
    torch.save(eight_bits, tmp_path / "f8.pth")
    assert "'head.weight' holds float8_e4m3fn; expected float32" in refusal(tmp_path / "f8.pth")


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning")
def test_kinds_of_tensors_that_hold_no_plain_numbers(tmp_path: Path) -> None:
    for value, kind in (
        (torch.ones(2, 2).to_sparse(), "a sparse tensor"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantized tensor"),
        (torch.ones(2).numpy(), "a numpy array or number"),
    ):
        torch.save({"emb.weight": value}, tmp_path / "w.pth")
        message = refusal(tmp_path / "w.pth")
        assert f"holds {kind} ('" in message
        assert "was not executed), expected plain tensors" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_no_numbers(
    tmp_path: Path, world: Tensors, dtype: str, value: float
) -> None:
    head = world["head.weight"].copy()
    head[65535, 3] = value
    path = write_pth(tmp_path / "w.pth", world | {"head.weight": head}, dtype)
    assert f"'head.weight' holds {value} at element 262143" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1.0, 2.0], "holds a list, expected a dictionary"),
        ({"state_dict": {"emb.weight": torch.ones(2)}}, "tensors of the blocks none, expected"),
        ({"emb.weight": "text"}, "'emb.weight' is a str, expected a tensor"),
        ({"_strategy": "cuda fp16"}, "converted by ChatRWKV"),
        ({"emb.weight": torch.ones(2), "_strategy": "cpu fp32"}, "converted by ChatRWKV"),
        ({"emb.weight": torch.ones(2), "head.weight": None}, "'head.weight' is a NoneType"),
        ({3: torch.ones(2)}, "entry '3' is a tensor under a int"),
        ({3: torch.ones(2), "step": 1}, "'step' is a int.*no entry of the file .'3', 'step'."),
        ({3: torch.ones(2), "emb.weight": torch.ones(2), "step": 1}, "entry '3' is a tensor"),
        ({}, "its tensors are named nothing"),
    ],
)
def test_torch_files_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert re.search(message, refusal(tmp_path / "w.pth"))


# Folders


def test_folders_without_weights(tmp_path: Path, world: Tensors) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no weights; expected model.safetensors, " in refusal(empty)
    write_config(tmp_path / "only-config", world)
    assert "found 'config.json'" in refusal(tmp_path / "only-config")


def test_several_checkpoints_in_a_folder(tmp_path: Path, world: Tensors) -> None:
    for name in ("a.pth", "b.pth"):
        write_pth(tmp_path / "m" / name, world)
    assert "several checkpoints: 'a.pth', 'b.pth'" in refusal(tmp_path / "m")


@pytest.mark.parametrize("write", [write_hf_bin, write_hf_safetensors])
def test_shards_missing_and_extra(tmp_path: Path, world: Tensors, write: Any) -> None:
    folder = write(tmp_path / "m", world, shards=3)
    second = next(folder.glob("*00002-of-00003*"))
    stray = second.with_name(second.name.replace("00002", "00009"))
    shutil.copy(second, stray)
    assert re.search("shards '.*00009.*which .*index.json does not name", refusal(folder))
    stray.unlink()
    second.unlink()
    assert re.search("lacks '.*00002-of-00003.*of the 3 shards", refusal(folder))
    next(folder.glob("*.index.json")).unlink()
    assert re.search("but not their index .*index.json", refusal(folder))


@pytest.mark.parametrize("write", [write_hf_bin, write_hf_safetensors])
def test_shards_beside_a_whole_file(tmp_path: Path, world: Tensors, write: Any) -> None:
    folder, other = write(tmp_path / "m", world), write(tmp_path / "o", world, shards=3)
    shutil.copy(next(other.glob("*00002-of-00003*")), folder)
    assert re.search("and beside it the shards '.*00002-of-00003.*: two downloads", refusal(folder))


@pytest.mark.parametrize("write", [write_hf_bin, write_hf_safetensors])
def test_index_and_shards_that_do_not_belong_together(
    tmp_path: Path, world: Tensors, write: Any
) -> None:
    folder = write(tmp_path / "m", world, shards=2)
    index = next(folder.glob("*.index.json"))
    original = index.read_text()
    content = json.loads(original)
    owner = content["weight_map"]

    owner["head.weight"], other = owner["rwkv.embeddings.weight"], owner["head.weight"]
    index.write_text(json.dumps(content))
    assert "'head.weight', which the index of" in refusal(folder)

    owner["head.weight"] = other
    owner["rwkv.blocks.7.ln1.weight"] = other
    index.write_text(json.dumps(content))
    assert "lacks tensor 'rwkv.blocks.7.ln1.weight', which the index" in refusal(folder)

    index.write_text(original)
    first, second = sorted(set(owner.values()))
    shutil.copy(folder / first, folder / second)
    assert "every tensor must be there once" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../w.bin", "/etc/passwd", "a/b.bin", "..", "", "a\\b", "C:w.bin", None, 3]
)
def test_index_that_leaves_the_folder(tmp_path: Path, world: Tensors, name: object) -> None:
    write_pth(tmp_path / "w.bin", {hf_name(k): v for k, v in world.items()})
    write_config(tmp_path / "m", world)
    weight_map = {hf_name(tensor): name for tensor in world}
    index = tmp_path / "m" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "expected the name of a file beside it. Nothing outside" in refusal(index.parent)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', "{}", "[" * 100_000])
def test_index_that_is_garbled(tmp_path: Path, world: Tensors, content: str) -> None:
    folder = write_hf_bin(tmp_path / "m", world, shards=2)
    (folder / "pytorch_model.bin.index.json").write_text(content)
    assert "index.json" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value", "actual"),
    [
        ("num_hidden_layers", 3, "2"),
        ("hidden_size", 8, "4"),
        ("attention_hidden_size", 8, "4"),
        ("intermediate_size", 64, "16"),
        ("vocab_size", 50277, "65536"),
        ("hidden_size", "4", "4"),
        ("hidden_size", True, "4"),
        ("model_type", "gpt2", "RWKV-4"),
        ("model_type", "rwkv6", "RWKV-4"),
        ("layer_norm_epsilon", "small", "1e-05"),
        ("layer_norm_epsilon", -1, "1e-05"),
        ("rescale_every", -1, "0 for never"),
        ("rescale_every", 2.5, "whole number"),
    ],
)
def test_config_that_contradicts_the_tensors(
    tmp_path: Path, hf_folder: Path, field: str, value: object, actual: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(hf_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    message = refusal(folder)
    assert f"config.json says {field} '{value}'" in message
    assert actual in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"9" * 5000])
def test_config_that_is_garbled(tmp_path: Path, hf_folder: Path, content: bytes) -> None:
    shutil.copytree(hf_folder, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(content)
    assert "config.json" in refusal(tmp_path / "m")


# Safetensors headers that lie


def write_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{" * 10, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b"{\xff}", "not JSON"),
        (b'{"a":1,"a":2}', "holds 'a' twice"),
        ({"a": []}, "entry 'a' is not a tensor's"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "not a tensor's"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "needs 8 bytes, not 4"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "not plain numbers"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "not plain numbers"),
        ({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}}, "not plain numbers"),
        ({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, "has 9 axes"),
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "does not begin where"),
        ({}, "4 bytes after the last tensor"),
    ],
)  # fmt: skip
def test_safetensors_headers_that_lie(tmp_path: Path, header: object, message: str) -> None:
    path = write_header(tmp_path / "w.safetensors", header, b"\0" * 4)
    assert message in refusal(path)


def test_safetensors_header_of_absurd_size(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((1 << 39).to_bytes(8, "little") + b'{"a": ')
    assert "header claims 549755813888 bytes" in refusal(path)
    path.write_bytes((1 << 20).to_bytes(8, "little") + b'{"a": ')
    assert "is truncated: 14 bytes found, 1048584 expected" in refusal(path)


# Zip directories that lie


def edit_zip(path: Path, world: Tensors, edit: Callable[[bytearray, int, int], None]) -> Path:
    """A checkpoint whose bytes `edit` changed, knowing where its directory and end record are."""
    data = bytearray(write_pth(path, world).read_bytes())
    end = data.rfind(b"PK\5\6")
    edit(data, data.find(b"PK\1\2"), end)
    path.write_bytes(data)
    return path


def patch(place: str, *changes: Any) -> Callable[[bytearray, int, int], None]:
    """Writes bytes at offsets from the beginning of the directory or the end record."""

    def edit(data: bytearray, directory: int, end: int) -> None:
        begin = {"directory": directory, "end": end}[place]
        for offset, value in zip(changes[::2], changes[1::2], strict=True):
            data[begin + offset : begin + offset + len(value)] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (patch("directory", 8, b"\x09\x08"), "is encrypted"),
        (patch("directory", 10, b"\x08"), "is compressed"),
        (patch("directory", 24, b"\xff\xff\xff\x7f"), "has two sizes"),
        (patch("directory", 42, b"\xff\xff\xff\x7f"), "lies beyond its end"),
        (patch("directory", 42, b"\x01\0\0\0"), "is not where it should be"),
        (patch("directory", 42, b"\xff\xff\xff\xff"), "lacks its zip64 field"),
        (patch("directory", 46, b"\xff\xff"), "an entry has the name"),
        (patch("directory", 16, b"\xff"), "does not match its checksum"),
        (patch("directory", 0, b"XX"), "directory is garbled"),
        (patch("end", 10, b"\xff\x7f"), "ends inside an entry"),
        (patch("end", 10, b"\x01\0"), "bytes after the last entry"),
        (patch("end", 12, b"\xff\xff\xff\x7f"), "zip directory claims 2147483647 bytes"),
        (patch("end", 16, b"\xff\xff\xff\x7f"), "lies beyond the end"),
        (patch("end", -20, b"XX", 16, b"\xff" * 4), "zip64 locator is missing"),
        (patch("end", -12, b"\xff" * 8, 16, b"\xff" * 4), "zip64 locator is missing"),
        (patch("end", -76, b"XX", 16, b"\xff" * 4), "zip64 end record is missing"),
        (patch("end", 20, b"\x01"), "contradicts itself"),
        (patch("end", 0, b"XX"), "is truncated"),
    ],
)
def test_zip_directories_that_lie(
    tmp_path: Path, world: Tensors, edit: Callable[[bytearray, int, int], None], message: str
) -> None:
    assert message in refusal(edit_zip(tmp_path / "w.pth", world, edit))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_zip_entry_there_twice(tmp_path: Path, world: Tensors) -> None:
    path = write_pth(tmp_path / "w.pth", world)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/data/0", b"\0" * 16)
    assert "holds the entry 'w/data/0' twice" in refusal(path)


def test_flipped_weight_is_told_by_the_checksum(tmp_path: Path, world: Tensors) -> None:
    path = write_pth(tmp_path / "w.pth", world)
    data = bytearray(path.read_bytes())
    place = data.find(world["head.weight"].tobytes()) + 12345
    data[place] ^= 1
    path.write_bytes(data)
    assert re.search(r"'head.weight' have checksum \w{8}, the file says \w{8}", refusal(path))


def test_zip64_as_large_files_have_it(tmp_path: Path, world: Tensors) -> None:
    """The fields that files over 4 GB have, in a small one."""
    with (
        zipfile.ZipFile(write_pth(tmp_path / "w.pth", world)) as source,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as target,
    ):
        for name in source.namelist():
            with target.open(name, "w", force_zip64=True) as entry:
                entry.write(source.read(name))
    data = bytearray((tmp_path / "big.pth").read_bytes())
    end = data.rfind(b"PK\5\6")
    count = int.from_bytes(data[end + 10 : end + 12], "little")
    length = int.from_bytes(data[end + 12 : end + 16], "little")
    offset = int.from_bytes(data[end + 16 : end + 20], "little")
    record = b"PK\6\6" + (44).to_bytes(8, "little") + bytes([45, 0, 45, 0]) + bytes(8)
    for number in (count, count, length, offset):
        record += number.to_bytes(8, "little")
    locator = b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    data[end + 8 : end + 20] = b"\xff" * 12
    (tmp_path / "big.pth").write_bytes(data[:end] + record + locator + data[end:])
    assert torch.load(tmp_path / "big.pth", weights_only=True).keys() == world.keys()
    assert_holds(open_checkpoint(tmp_path / "big.pth"), world)
