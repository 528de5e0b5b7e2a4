"""Lowered modules that are kept for the next build."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from lowering import Lowered
from running import logits
from support.modules import small_config

from mlc_rwkv_world.compiler import cache as kept_modules
from mlc_rwkv_world.compiler import library, metadata
from mlc_rwkv_world.compiler.cache import ModuleCache
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named

pytestmark = pytest.mark.slow


def test_a_kept_module_makes_an_equal_library(
    lowered: Lowered, linked: Path, tmp_path: Path
) -> None:
    cache = ModuleCache(tmp_path / "cache", lowered.described)
    assert cache.load() is None
    cache.store(lowered.module)
    kept = ModuleCache(tmp_path / "cache", lowered.described).load()
    assert kept is not None
    tvm.ir.assert_structural_equal(kept, lowered.module)
    library.write(kept, lowered.target, tmp_path / "kept.so")
    np.testing.assert_array_equal(
        logits(tvm.runtime.load_module(str(tmp_path / "kept.so"))),
        logits(tvm.runtime.load_module(str(linked))),
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("relax.", "nothing."),
        lambda text: "[]",
        lambda text: '{"root_index": 0, "nodes": []}',
        lambda text: tvm.ir.save_json(tvm.runtime.convert([1])),
    ],
    ids=["empty", "half", "unknown types", "list", "no nodes", "no module"],
)
def test_damaged_files_are_ignored(lowered: Lowered, tmp_path: Path, damage: Any) -> None:
    cache = ModuleCache(tmp_path, lowered.described)
    cache.store(lowered.module)
    cache.path.write_text(damage(cache.path.read_text()))
    assert cache.load() is None
    cache.store(lowered.module)
    assert cache.load() is not None


def test_undecodable_files_are_ignored(lowered: Lowered, tmp_path: Path) -> None:
    cache = ModuleCache(tmp_path, lowered.described)
    cache.path.write_bytes(b"\xff\xfe\x00")
    assert cache.load() is None


def _path(
    quantization: str = "q4f16_1",
    target: str = "llvm",
    dtype: str = "float32",
    prefix: str | None = None,
    **changes: Any,
) -> Path:
    config, fmt = small_config(**changes), format_named(quantization)
    described = metadata.describe(config, fmt, parameters(config, fmt), resolve(target), dtype)
    return ModuleCache(Path("cache"), described, prefix).path


def test_the_name_tells_everything_apart_that_a_module_is_made_from() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"quantization": "q4f32_1"},
        {"quantization": "q8f16_1"},
        {"target": "cuda -arch=sm_90"},
        {"target": "cuda -arch=sm_80"},
        {"target": "llvm -mcpu=generic"},
        {"dtype": "float16"},
        {"prefix": "small_"},
        {"layer_norm_epsilon": 1e-6},
        {"rescale_every": 6},
        {"num_hidden_layers": 3},
        {"intermediate_size": 128},
        {"vocab_size": 128},
        {"prefill_chunk_size": 32},
        {"max_batch_size": 8},
    ]
    assert len({_path(**change) for change in changes}) == len(changes)
    assert _path() == _path()


def test_a_new_tvm_or_a_changed_source_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc_rwkv_world.compiler import cache

    paths = {_path()}
    for name, value in (("REVISION", -1), ("digest_of_sources", lambda _: "other")):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, value)
            paths.add(_path())
    monkeypatch.setattr(tvm, "__version__", "0.0")
    paths.add(_path())
    assert len(paths) == 4


def test_a_hosts_additions_count_too() -> None:
    described: dict[str, Any] = {}
    folder = Path("cache")
    paths = {ModuleCache(folder, described, None, added).path for added in (None, STOCK)}
    assert len(paths) == 2


def test_a_folder_that_cannot_be_written_is_no_failure(lowered: Lowered, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ModuleCache(tmp_path / "file" / "cache", lowered.described)
    cache.store(lowered.module)
    assert cache.load() is None


@pytest.mark.parametrize(
    ("version", "kept"),
    [("0.1.14.post0", True), ("0.1.14.post1", True), ("0.1.15.post2", False), ("0.2.0", False)],
)
def test_nothing_is_written_where_tvm_would_die_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, kept: bool
) -> None:
    monkeypatch.setattr(tvm_ffi, "__version__", version)
    cache = ModuleCache(tmp_path / "cache", {})
    cache.store(tvm.IRModule({}))
    assert cache.path.exists() is kept


def test_the_modules_that_are_not_used_make_room(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_modules, "_MOST", 2)
    first, second, third = (ModuleCache(tmp_path, lowered.described, f"{n}_") for n in range(3))
    for age, module in enumerate((first, second)):
        module.store(lowered.module)
        os.utime(module.path, (age, age))
    assert first.load() is not None
    third.store(lowered.module)
    assert [one.path.exists() for one in (first, second, third)] == [True, False, True]
