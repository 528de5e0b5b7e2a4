"""RWKV-5 and 6 in every layout that they are published in: the same tensors, or the fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoints import Tensors, random_rwkv5, write_hf_safetensors, write_pth
from support.values import model_weights

from mlc_rwkv_world.checkpoint import Checkpoint, ModelShape, open_checkpoint
from mlc_rwkv_world.errors import CheckpointError

LAYERS, WIDTH, HEAD, INNER = 2, 64, 32, 224
VERSIONS = ("5.0", "5.1", "5.2", "6.0")
# As published: the number of heads is wrong, and what is null is 3.5 times the width.
CONFIG = {"head_size": HEAD, "head_size_divisor": 8, "num_attention_heads": 64}


def checkpoint_of(version: str, **changes: bool) -> Tensors:
    """Values that every type of element can hold."""
    tensors = random_rwkv5(LAYERS, WIDTH, version=version, head_size=HEAD, seed=5, **changes)
    return {name: array.astype(np.float16).astype(np.float32) for name, array in tensors.items()}


def modelscopes(tensors: Tensors) -> Tensors:
    """As the `.st` files of ModelScope have an RWKV-5.2 or 6: other names, turned, float16."""
    changed = {}
    for name, array in tensors.items():
        turned = any(part in name for part in ("_w1", "_w2", "time_state"))
        shown = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix")
        array = np.ascontiguousarray(array.swapaxes(-1, -2)) if turned else array
        changed[shown] = array.astype(np.float16)
    return changed


def assert_holds(checkpoint: Checkpoint, saved: Tensors) -> None:
    """Exactly the tensors that the model uses, to the bit."""
    expected = {}
    for name, array in model_weights(saved).arrays.items():
        canonical = name.removeprefix("model.").replace("pre_ln", "blocks.0.pre_ln")
        if not canonical.endswith("time_state"):
            expected[canonical] = array
    assert set(checkpoint.names()) == set(expected)
    for name, array in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32 and read.flags.c_contiguous
        np.testing.assert_array_equal(read, array, err_msg=name)


def sizes(version: str) -> ModelShape:
    ranks = {"mix_low_rank_dim": 32, "decay_low_rank_dim": 64} if version == "6.0" else {}
    return ModelShape(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        attention_hidden_size=WIDTH,
        intermediate_size=INNER,
        vocab_size=65536,
        model_version=int(float(version)),
        head_size=HEAD,
        attention_gate=version != "5.0",
        **ranks,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("version", VERSIONS)
def test_pth(tmp_path: Path, version: str, dtype: str) -> None:
    tensors = checkpoint_of(version)
    if dtype == "bfloat16":
        tensors = {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in tensors.items()}
    checkpoint = open_checkpoint(write_pth(tmp_path / "RWKV-World.pth", tensors, dtype))
    assert checkpoint.version == int(float(version))
    assert checkpoint.config == sizes(version)
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1), (2,)])
def test_heads_in_all_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = checkpoint_of("5.1")
    changed = {
        name: array.reshape(shape) if name.endswith(("time_decay", "time_faaaa")) else array
        for name, array in tensors.items()
    }
    assert_holds(open_checkpoint(write_pth(tmp_path / "model.pth", changed)), tensors)


@pytest.mark.parametrize("version", ["5.2", "6.0"])
def test_hugging_face(tmp_path: Path, version: str) -> None:
    tensors = checkpoint_of(version)
    kind = f"rwkv{version[0]}"
    given: dict[str, Any] = {
        **CONFIG,
        "model_type": kind,
        "model_version": version.replace(".", "_"),
    }
    folder = write_hf_safetensors(tmp_path / "model", tensors, **given)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == sizes(version)
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("version", ["5.2", "6.0"])
@pytest.mark.parametrize("tuned", [False, True])
def test_modelscope(tmp_path: Path, version: str, tuned: bool) -> None:
    tensors = checkpoint_of(version, tuned=tuned)
    save_file(modelscopes(tensors), tmp_path / "RWKV-World.st")
    for path in (tmp_path / "RWKV-World.st", tmp_path):
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == sizes(version)
        assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tuned_state_inside(tmp_path: Path, version: str) -> None:
    tensors = checkpoint_of(version, tuned=True)
    checkpoint = open_checkpoint(write_pth(tmp_path / "tuned.pth", tensors))
    assert checkpoint.holds_tuned_state
    assert_holds(checkpoint, tensors)
    bare = write_pth(tmp_path / "bare.pth", checkpoint_of(version))
    assert not open_checkpoint(bare).holds_tuned_state


@pytest.mark.parametrize(
    ("version", "lost", "named"),
    [
        ("5.2", "blocks.1.att.time_faaaa", "blocks.1.att.time_first"),
        ("5.1", "blocks.1.att.gate.weight", "blocks.1.att.gate.weight"),
        ("6.0", "blocks.1.att.time_maa_w2", "blocks.1.att.time_maa_w2.w.weight"),
        ("6.0", "blocks.0.att.time_maa_w1", "blocks.0.att.time_maa_w1.weight"),
        ("6.0", "blocks.1.ffn.time_maa_r", "blocks.1.ffn.time_maa_r"),
    ],
)
def test_what_is_missing(tmp_path: Path, version: str, lost: str, named: str) -> None:
    tensors = checkpoint_of(version)
    del tensors[lost]
    with pytest.raises(CheckpointError, match="lacks the tensors") as raised:
        open_checkpoint(write_pth(tmp_path / "model.pth", tensors))
    assert repr(named) in str(raised.value)


@pytest.mark.parametrize(
    ("version", "name", "shape"),
    [
        ("5.1", "blocks.1.att.time_decay", (3,)),
        ("5.2", "blocks.1.att.time_faaaa", (3, 32)),
        ("6.0", "blocks.1.att.time_decay_w2", (32, 64)),
        ("6.0", "blocks.1.att.time_maa_w2", (5, 32, 32)),
    ],
)
def test_other_shapes(tmp_path: Path, version: str, name: str, shape: tuple[int, ...]) -> None:
    tensors = {**checkpoint_of(version), name: np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError, match="expected") as raised:
        open_checkpoint(write_pth(tmp_path / "model.pth", tensors))
    assert repr(name) in str(raised.value)


def test_an_exponent_beyond_float32(tmp_path: Path) -> None:
    tensors = checkpoint_of("5.0")
    tensors["blocks.1.att.time_first"][1] = 100
    checkpoint = open_checkpoint(write_pth(tmp_path / "model.pth", tensors))
    with pytest.raises(CheckpointError, match="every weight must be a finite number"):
        checkpoint.read("blocks.1.attention.time_first")


@pytest.mark.parametrize("kind", ["rwkv7", "rwkv6"])
def test_configurations_that_do_not_belong(tmp_path: Path, kind: str) -> None:
    folder = write_hf_safetensors(tmp_path / "model", checkpoint_of("5.2"), model_type=kind)
    with pytest.raises(CheckpointError, match=f"model_type '{kind}'.*those of RWKV-5"):
        open_checkpoint(folder)
