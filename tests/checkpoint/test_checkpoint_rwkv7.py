"""RWKV-7 in every layout that it is published in: the same tensors, or the fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.checkpoints import (
    DTYPES,
    RANKS,
    Tensors,
    canonical_name,
    fla_tensors,
    random_rwkv7,
    write_fla,
    write_pth,
)

from mlc_rwkv_world.checkpoint import Checkpoint, ModelShape, open_checkpoint
from mlc_rwkv_world.checkpoint.names import canonical_name as canonical
from mlc_rwkv_world.checkpoint.names import is_turned
from mlc_rwkv_world.errors import CheckpointError

LAYERS, WIDTH, HEAD = 2, 12, 4
SMALL = {"w": 3, "a": 5, "v": 2, "g": 7}


@pytest.fixture(scope="module")
def world() -> Tensors:
    return random_rwkv7(LAYERS, WIDTH, head_size=HEAD, ranks=SMALL, seed=7)


def assert_holds(checkpoint: Checkpoint, saved: Tensors, dtype: str = "float32") -> None:
    """Exactly the tensors that the model uses, to the bit, the factors turned."""
    kind = getattr(torch, dtype)
    expected = {
        canonical_name(name): torch.from_numpy(np.ascontiguousarray(array)).to(kind).float().numpy()
        for name, array in saved.items()
        if name not in [f"blocks.0.att.v{n}" for n in range(3)]
    }
    assert set(checkpoint.names()) == set(expected)
    for name, array in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        shaped = array.T if name[-10:-8] in [f".{x}" for x in "wavg"] else array
        shaped = shaped if name.endswith(".r_k") else shaped.squeeze()
        np.testing.assert_array_equal(read, shaped, err_msg=name)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_pth(tmp_path: Path, world: Tensors, dtype: str) -> None:
    checkpoint = open_checkpoint(write_pth(tmp_path / "RWKV-x070-World-0.1B.pth", world, dtype))
    assert checkpoint.version == 7
    assert checkpoint.config == ModelShape(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        attention_hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        vocab_size=65536,
        rescale_every=0,
        model_version=7,
        head_size=HEAD,
        decay_low_rank_dim=3,
        a_low_rank_dim=5,
        v_low_rank_dim=2,
        gate_low_rank_dim=7,
    )
    assert_holds(checkpoint, world, dtype)


def test_block_0_need_not_have_a_share_of_its_own_value(tmp_path: Path, world: Tensors) -> None:
    part = {k: v for k, v in world.items() if not k.startswith("blocks.0.att.v")}
    part["blocks.0.att.value.weight"] = world["blocks.0.att.value.weight"]
    assert_holds(open_checkpoint(write_pth(tmp_path / "w.pth", part)), world)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("one_mix", [False, True])
def test_fla(tmp_path: Path, world: Tensors, dtype: str, shards: int, one_mix: bool) -> None:
    folder = write_fla(tmp_path / "rwkv7", world, dtype, shards=shards, one_mix=one_mix)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.version, checkpoint.config.layer_norm_epsilon) == (7, 1e-5)
    assert_holds(checkpoint, world, dtype)


def test_bin(tmp_path: Path, world: Tensors) -> None:
    """The same names in a torch file, where a transposed view is stored as it lies."""
    folder = write_fla(tmp_path / "rwkv7", world)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(
        {k: torch.from_numpy(v.T.copy()).permute(*range(v.ndim)[::-1]) for k, v in stored.items()},
        folder / "pytorch_model.bin",
    )
    assert_holds(open_checkpoint(folder), world)


def test_factors_that_are_square(tmp_path: Path) -> None:
    """No shape tells how they lie; their names do."""
    square = random_rwkv7(2, 8, head_size=4, ranks=dict.fromkeys(RANKS, 8))
    assert_holds(open_checkpoint(write_pth(tmp_path / "w.pth", square)), square)
    assert_holds(open_checkpoint(write_fla(tmp_path / "m", square)), square)


def test_one_block(tmp_path: Path) -> None:
    one = random_rwkv7(1, 8, head_size=4, ranks=SMALL)
    checkpoint = open_checkpoint(write_pth(tmp_path / "w.pth", one))
    assert checkpoint.config.v_low_rank_dim == 0
    assert_holds(checkpoint, one)


@pytest.mark.parametrize(
    "changes",
    [
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 7},
        {"model_type": "rwkv7_fla"},
        {"num_heads": 64, "num_attention_heads": 64, "head_dim": None},
        # Ranks are those of the tensors.
        {"decay_low_rank_dim": 64, "a_low_rank_dim": None, "gate_low_rank_dim": "?"},
        {"intermediate_size": None, "hidden_ratio": None},
        {"rescale_every": 6},
    ],
    ids=str,
)
def test_what_configurations_say_wrong(
    tmp_path: Path, world: Tensors, changes: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(write_fla(tmp_path / "m", world, **changes))
    assert checkpoint.config.rescale_every == 0
    assert_holds(checkpoint, world)


def test_epsilon_and_divisor_by_either_name(tmp_path: Path, world: Tensors) -> None:
    found = open_checkpoint(write_fla(tmp_path / "a", world, norm_eps=1e-6)).config
    assert (found.layer_norm_epsilon, found.head_size_divisor) == (1e-6, 8)
    more: dict[str, Any] = {"norm_eps": None, "layer_norm_epsilon": 1e-4, "head_size_divisor": 4}
    found = open_checkpoint(write_fla(tmp_path / "b", world, **more)).config
    assert (found.layer_norm_epsilon, found.head_size_divisor) == (1e-4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "rwkv"},
            r"says model_type 'rwkv', but .* those of RWKV-7 \(model_type 'rw",
        ),
        ({"head_dim": 64}, "says head_dim '64', but the tensors in .* have 4"),
        ({"hidden_size": 64}, "says hidden_size '64', but"),
        ({"norm_eps": "small"}, "says norm_eps 'small', expected a small number"),
        ({"head_size_divisor": 0}, "says head_size_divisor '0', expected a whole number"),
        ({"attn": {"layers": [3]}}, "the model is a hybrid"),
    ],
    ids=str,
)
def test_configurations_that_do_not_belong(
    tmp_path: Path, world: Tensors, changes: dict[str, Any], message: str
) -> None:
    folder = write_fla(tmp_path / "m", world, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("lost", "pth", "fla"),
    [
        ("blocks.1.att.w0", "blocks.1.att.w0", "model.layers.1.attn.w_lora.lora.2.bias"),
        ("blocks.1.att.v2", "blocks.1.att.v2", "model.layers.1.attn.v_lora.lora.2.weight"),
        ("blocks.1.ln2.bias", "blocks.1.ln2.bias", "model.layers.1.ffn_norm.bias"),
        ("blocks.0.att.r_k", "blocks.0.att.r_k", "model.layers.0.attn.r_k"),
        ("head.weight", "head.weight", "lm_head.weight"),
        ("ln_out.weight", "ln_out.weight", "model.norm.weight"),
    ],
)
def test_what_lacks_is_spelled_as_in_the_file(
    tmp_path: Path, world: Tensors, lost: str, pth: str, fla: str
) -> None:
    part = {name: array for name, array in world.items() if name != lost}
    assert f"lacks the tensors '{pth}'" in refusal(write_pth(tmp_path / "w.pth", part))
    folder = write_fla(tmp_path / "m", world)
    stored = load_file(folder / "model.safetensors")
    del stored[fla]
    save_file(stored, folder / "model.safetensors")
    assert f"lacks the tensors '{fla}'" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.1.att.w1": np.ones((12, 4))},
            "'blocks.1.att.w1' has shape [4, 12], expected [3,",
        ),
        ({"blocks.0.att.w1": np.ones(36)}, "tensor 'blocks.0.att.w1' has shape [36], expected a m"),
        ({"blocks.0.att.r_k": np.ones((2, 6))}, "'blocks.1.att.r_k' has shape [3, 4], expected [2"),
        ({"blocks.0.att.r_k": np.ones((5, 2))}, "'blocks.0.att.r_k' has shape [5, 2], expected [6"),
        ({"blocks.1.att.v1": np.ones(())}, "'blocks.1.att.v1' has shape [], expected [0, 12]"),
        ({"blocks.1.att.gate.weight": np.ones(4)}, "has tensors that RWKV-7 does not: 'blocks.1.a"),
        ({"blocks.1.att.time_state": np.ones((3, 4, 4))}, "has tensors that RWKV-7 does not"),
        ({"blocks.0.att.v3": np.ones(4)}, "has tensors that RWKV-7 does not: 'blocks.0.att.v3'"),
    ],
    ids=str,
)
def test_tensors_of_other_shapes(
    tmp_path: Path, world: Tensors, changes: Tensors, message: str
) -> None:
    changed = {name: array.astype(np.float32) for name, array in changes.items()}
    assert message in refusal(write_pth(tmp_path / "w.pth", world | changed))


def test_mixes_in_one_tensor_and_alone(tmp_path: Path, world: Tensors) -> None:
    folder = write_fla(tmp_path / "m", world, one_mix=True)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.attn.x_x"
    twice = stored | {"model.layers.1.attn.x_k": stored[name][2]}
    save_file(twice, folder / "model.safetensors")
    message = refusal(folder)
    assert f"holds '{name}' and 'model.layers.1.attn.x_k', which is one of its rows" in message
    save_file(stored | {name: stored[name][:5].copy()}, folder / "model.safetensors")
    assert f"'{name}' has shape [5, 12], expected 6 rows" in refusal(folder)


def test_names_go_both_ways(world: Tensors) -> None:
    theirs = fla_tensors(world)
    assert {canonical(name) for name in theirs} == {canonical(name) for name in world}
    assert {canonical(name) for name in world} == {canonical_name(name) for name in world}
    assert {name for name in world if is_turned(name)} == {
        f"blocks.{i}.att.{x}{n}" for i in range(LAYERS) for x in "wavg" for n in (1, 2)
    }
    assert not any(map(is_turned, theirs))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "transformer.layers.0.input_layernorm.weight",
        "model.layers.attn",
        "decoder.norm.running_mean",
    ],
)
def test_names_of_other_models_stay(name: str) -> None:
    assert canonical(name) == name


def test_config_alone_does_not_make_one(tmp_path: Path, world: Tensors) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv7"}))
    save_file({"model.layers.0.self_attn.q.weight": np.ones((2, 2))}, folder / "model.safetensors")
    assert "is not an RWKV model" in refusal(folder)
