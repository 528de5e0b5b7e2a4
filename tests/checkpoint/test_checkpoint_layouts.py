"""Every layout that a World checkpoint comes in gives the tensors that were saved."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import assert_holds
from support.checkpoints import (
    DTYPES,
    Tensors,
    as_stored,
    canonical_name,
    hf_name,
    write_config,
    write_hf_bin,
    write_hf_safetensors,
    write_pth,
)

from mlc_rwkv_world.checkpoint import ModelShape, find_vocabulary, open_checkpoint


def tensors_of(world: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in world.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_pth(tmp_path: Path, world: Tensors, dtype: str) -> None:
    path = write_pth(tmp_path / "RWKV-4-World-0.1B-v1-ctx4096.pth", world, dtype)
    checkpoint = open_checkpoint(path)
    assert checkpoint.name == "RWKV-4-World-0.1B-v1-ctx4096"
    assert checkpoint.version == 4
    assert checkpoint.files == (path,)
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {dtype}
    assert checkpoint.config == ModelShape(
        num_hidden_layers=2,
        hidden_size=4,
        attention_hidden_size=4,
        intermediate_size=16,
        vocab_size=65536,
        layer_norm_epsilon=1e-5,
        rescale_every=6,
    )
    assert_holds(checkpoint, as_stored(world, dtype))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("write", [write_hf_bin, write_hf_safetensors])
def test_hf_folder(tmp_path: Path, world: Tensors, write: Any, dtype: str, shards: int) -> None:
    folder = write(tmp_path / "RWKV-4-World", world, dtype, shards=shards)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.name == "RWKV-4-World"
    assert len(checkpoint.files) == shards
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {dtype}
    assert_holds(checkpoint, as_stored(world, dtype))


def test_every_layout_has_the_same_names_in_the_same_order(tmp_path: Path, world: Tensors) -> None:
    backwards = dict(reversed(world.items()))
    orders = {
        tuple(open_checkpoint(path).names())
        for path in (
            write_pth(tmp_path / "a.pth", backwards),
            write_hf_bin(tmp_path / "b", world, shards=4),
            write_hf_safetensors(tmp_path / "c", backwards, shards=2),
        )
    }
    assert len(orders) == 1
    names = orders.pop()
    assert names[0] == "embeddings.weight"
    assert names[1] == "blocks.0.pre_ln.weight"
    assert names[-1] == "head.weight"


@pytest.mark.slow
def test_what_transformers_saves(tmp_path: Path, world: Tensors) -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=65536, hidden_size=4, num_hidden_layers=2, rescale_every=4, context_length=64
    )
    model = RwkvForCausalLM(config)
    state = {hf_name(name): tensor for name, tensor in tensors_of(world).items()}
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="1MB")
    # The state dictionary is an OrderedDict with an attribute, of Parameters.
    write_config(tmp_path / "bin", world)
    torch.save(model.state_dict(keep_vars=True), tmp_path / "bin" / "pytorch_model.bin")
    for folder in ("one", "many", "bin"):
        assert_holds(open_checkpoint(tmp_path / folder), world)
    assert open_checkpoint(tmp_path / "one").config.rescale_every == 4
    assert len(open_checkpoint(tmp_path / "many").files) > 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, world: Tensors, protocol: int) -> None:
    torch.save(tensors_of(world), tmp_path / "w.pth", pickle_protocol=protocol)
    assert_holds(open_checkpoint(tmp_path / "w.pth"), world)


def test_views_of_larger_storages(tmp_path: Path, world: Tensors) -> None:
    """Transposed, strided, offset and shared tensors, as torch.save keeps them."""
    tensors = tensors_of(world)
    value = "blocks.0.ffn.value.weight"
    tensors[value] = tensors[value].t().contiguous().t()
    assert not tensors[value].is_contiguous()
    first = "blocks.0.att.time_first"
    wide = torch.full((4, 3), torch.nan)
    wide[:, 1] = tensors[first]
    tensors[first] = wide[:, 1]
    both = torch.cat([tensors["blocks.0.att.key.weight"], tensors["blocks.0.att.value.weight"]])
    tensors["blocks.0.att.key.weight"], tensors["blocks.0.att.value.weight"] = both[:4], both[4:]
    torch.save(tensors, tmp_path / "w.pth")
    assert_holds(open_checkpoint(tmp_path / "w.pth"), world)


def test_file_without_checksums(tmp_path: Path, world: Tensors) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        write_pth(tmp_path / "w.pth", world)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_holds(open_checkpoint(tmp_path / "w.pth"), world)


def test_mixed_types_and_double(tmp_path: Path, world: Tensors) -> None:
    tensors = tensors_of(world)
    tensors["head.weight"] = tensors["head.weight"].double()
    tensors["emb.weight"] = tensors["emb.weight"].half()
    torch.save(tensors, tmp_path / "w.pth")
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    assert checkpoint.dtype("head.weight") == "float64"
    assert checkpoint.dtype("embeddings.weight") == "float16"
    half = as_stored({"emb.weight": world["emb.weight"]}, "float16")
    assert_holds(checkpoint, world | half)


def test_tensors_larger_than_one_piece(tmp_path: Path, world: Tensors) -> None:
    # 65536 x 32 elements are two pieces; the last one of 65536 x 33 is not full.
    from support.checkpoints import random_world

    for width in (32, 33):
        large = random_world(num_hidden_layers=1, hidden_size=width)
        for dtype in DTYPES:
            path = write_pth(tmp_path / "large.pth", large, dtype)
            assert_holds(open_checkpoint(path), as_stored(large, dtype))


def test_single_file_of_any_kind_and_name(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_safetensors(tmp_path / "hf", world)
    assert_holds(open_checkpoint(folder / "model.safetensors"), world)
    shutil.copy(folder / "model.safetensors", tmp_path / "misnamed.pth")
    assert_holds(open_checkpoint(tmp_path / "misnamed.pth"), world)
    write_pth(tmp_path / "lone" / "world.pth", world)
    assert_holds(open_checkpoint(tmp_path / "lone"), world)


def test_preferred_format(tmp_path: Path, world: Tensors) -> None:
    write_hf_safetensors(tmp_path, world, "float16")
    write_hf_bin(tmp_path, world, "float32")
    assert open_checkpoint(tmp_path).dtype("head.weight") == "float16"
    by_choice = open_checkpoint(tmp_path, prefer_safetensors=False)
    assert by_choice.dtype("head.weight") == "float32"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"vocab_size": None, "hidden_size": None, "num_hidden_layers": None},
        {"attention_hidden_size": None, "intermediate_size": None, "rescale_every": None},
        {"tie_word_embeddings": True, "never_heard_of": {"a": [1]}, "model_type": "rwkv"},
    ],
)
def test_config_that_says_little(
    tmp_path: Path, hf_folder: Path, world: Tensors, config: dict[str, Any]
) -> None:
    import json

    shutil.copytree(hf_folder, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == open_checkpoint(hf_folder).config
    assert_holds(checkpoint, world)


def test_config_that_says_more(tmp_path: Path, world: Tensors) -> None:
    folder = write_hf_bin(tmp_path / "m", world, layer_norm_epsilon=1e-6, rescale_every=0)
    shape = open_checkpoint(folder).config
    assert (shape.layer_norm_epsilon, shape.rescale_every) == (1e-6, 0)


def test_tensors_in_any_order_again_in_threads_and_after_pickling(
    hf_folder: Path, world: Tensors
) -> None:
    checkpoint = open_checkpoint(hf_folder)
    names = checkpoint.names()
    expected = {canonical_name(name): array for name, array in world.items()}
    for name in [*reversed(names), *names]:
        np.testing.assert_array_equal(checkpoint.read(name).ravel(), expected[name].ravel())
    with ThreadPoolExecutor(4) as pool:
        for name, array in zip(names, pool.map(checkpoint.read, names), strict=True):
            np.testing.assert_array_equal(array.ravel(), expected[name].ravel())
    assert_holds(pickle.loads(pickle.dumps(checkpoint)), world)


def test_name_of_the_working_directory(
    tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf_folder)
    assert open_checkpoint(".").name == "RWKV-4-World"
    # Like the hub's cache, whose folders hold links to blobs.
    (tmp_path / "linked").symlink_to(hf_folder)
    assert open_checkpoint(tmp_path / "linked").name == "linked"


def test_vocabulary_of_a_folder(tmp_path: Path) -> None:
    assert find_vocabulary(tmp_path) is None
    for name in ("rwkv_vocab_v20230424.txt", "rwkv_vocab_v20230922.txt", "tokenizer_model"):
        (tmp_path / name).touch()
        assert find_vocabulary(tmp_path) == tmp_path / name
