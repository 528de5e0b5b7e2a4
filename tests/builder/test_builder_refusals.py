"""What the build command says of what is no RWKV-4 World model: one message, status 4."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Tensors, write_hf_safetensors, write_pth

from mlc_rwkv_world.cli import build as command
from mlc_rwkv_world.errors import CheckpointError, UsageError

Make = Callable[[Path, Tensors], Path]


def file_of(content: bytes) -> Make:
    def make(folder: Path, world: Tensors) -> Path:
        (folder / "model.pth").write_bytes(content)
        return folder / "model.pth"

    return make


def empty_folder(folder: Path, world: Tensors) -> Path:
    (folder / "model").mkdir()
    return folder / "model"


def missing_shard(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder / "model", world, shards=3)
    (folder / "model" / "model-00002-of-00003.safetensors").unlink()
    return folder / "model"


def extra_shard(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder / "model", world, shards=2)
    (folder / "model" / "model-00001-of-00009.safetensors").write_bytes(b"")
    return folder / "model"


def shard_that_leads_outside(folder: Path, world: Tensors) -> Path:
    write_hf_safetensors(folder / "model", world, shards=2)
    index = folder / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["head.weight"] = "../../etc/passwd"
    index.write_text(json.dumps(content))
    return folder / "model"


def truncated(folder: Path, world: Tensors) -> Path:
    path = write_pth(folder / "model.pth", world)
    os.truncate(path, path.stat().st_size // 2)
    return path


def pickle_with_a_command(folder: Path, world: Tensors) -> Path:
    import torch

    class Command:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder / 'executed'}",)

    torch.save({"emb.weight": Command()}, folder / "model.pth")
    return folder / "model.pth"


def changed(**changes: np.ndarray) -> Make:
    def make(folder: Path, world: Tensors) -> Path:
        named = {name.replace("__", "."): array for name, array in changes.items()}
        return write_pth(folder / "model.pth", {**world, **named})

    return make


def with_nan(folder: Path, world: Tensors) -> Path:
    head = world["head.weight"].copy()
    head[7, 3] = np.nan
    return write_pth(folder / "model.pth", {**world, "head.weight": head})


def of_another_vocabulary(folder: Path, world: Tensors) -> Path:
    small = {name: world[name][:50277] for name in ("emb.weight", "head.weight")}
    return write_pth(folder / "model.pth", {**world, **small})


def of_another_family(folder: Path, world: Tensors) -> Path:
    weights = {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}
    return write_pth(folder / "model.pth", weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (file_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs pointer"),
        (file_of(b"<!DOCTYPE html><html>Not found</html>"), "web page (HTML)"),
        (file_of(b""), "is empty (0 bytes)"),
        (empty_folder, "holds no weights"),
        (missing_shard, "lacks 'model-00002-of-00003.safetensors'"),
        (extra_shard, "two downloads are mixed"),
        (shard_that_leads_outside, "Nothing outside the folder is read"),
        (truncated, "is truncated"),
        (pickle_with_a_command, "it was not executed"),
        (with_nan, "holds nan at element"),
        (changed(ln_out__weight=np.ones(5, np.float32)), "has shape [5], expected [32]"),
        (changed(extra__weight=np.ones(5, np.float32)), "tensors that RWKV-4 does not"),
        (changed(blocks__0__att__ln_x__weight=np.ones(32, np.float32)), "lacks the tensors"),
        (of_another_vocabulary, "is a Pile or Raven checkpoint"),
        (of_another_family, "is not an RWKV model"),
    ],
)
def test_one_message_and_status_4(
    make: Make, message: str, world: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path, world)
    arguments = ["--hf-path", path, "--artifact-path", tmp_path / "dist", "--target", "llvm"]
    status = command.main([*map(str, arguments), "--convert-weights-only"], "build")
    errors = capsys.readouterr().err
    assert status == CheckpointError.exit_status
    assert errors.startswith("build: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert str(path) in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "dist").glob("[!.]*"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["--hf-path", "."], "'.' is a path, and only a model on the hub has a revision ('v1')"),
        (["--model", "x"], "--revision v1 is of a model on the hub: give --hf-path"),
        (["--hf-path", "a/b@v2"], "names the revision 'v2' and not 'v1', which was given too"),
        (["--hf-path", "https://example.org/a/b"], "is not a model on the hub; expected owner"),
    ],
)
def test_revisions_of_what_has_none(
    source: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*source, "--revision", "v1", "--artifact-path", str(tmp_path / "dist")]
    assert command.main([*arguments, "--target", "llvm"], "build") == UsageError.exit_status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()
