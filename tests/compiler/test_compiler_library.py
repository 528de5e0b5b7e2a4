"""Libraries, and the objects that are linked elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tvm
from lowering import PREFIX, Lowered
from running import logits

from mlc_rwkv_world.compiler import library
from mlc_rwkv_world.compiler.library import system_lib_prefix
from mlc_rwkv_world.errors import TargetError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.system() != "Linux", reason="links as Linux does"),
]


def _link(objects: Path, folder: Path) -> Path:
    """The library of the objects in a tar, as its reader would make it."""
    with tarfile.open(objects) as archive:
        archive.extractall(folder, filter="data")
    command = ["c++", "-shared", "-o", "linked.so", *sorted(p.name for p in folder.glob("*.o"))]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "linked.so"


def test_objects_can_be_linked_later(lowered: Lowered, linked: Path, tmp_path: Path) -> None:
    written = library.write(lowered.module, lowered.target, tmp_path / "small.tar")
    assert written == [tmp_path / "small.tar"]
    (note,) = library.notes(lowered.target, written)
    assert note == "small.tar holds object files, to be linked where they will run"
    later = tvm.runtime.load_module(str(_link(written[0], tmp_path)))
    np.testing.assert_array_equal(logits(later), logits(tvm.runtime.load_module(str(linked))))


def test_what_code_generation_leaves_out_changes_no_bit(
    lowered: Lowered, linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "lowering", lambda target: nullcontext())
    (path,) = library.write(lowered.module, lowered.target, tmp_path / "everything.so")
    expected = logits(tvm.runtime.load_module(str(path)))
    np.testing.assert_array_equal(logits(tvm.runtime.load_module(str(linked))), expected)


_RUN_SYSTEM_LIB = """
    import ctypes, sys
    from mlc_rwkv_world.cli.start import start
    start()
    import numpy, tvm
    from running import logits
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    numpy.save(sys.argv[2], logits(tvm.runtime.system_lib(sys.argv[3])))
"""


def test_a_system_library_runs_and_prefixes_its_symbols(
    system_lowered: Lowered, linked: Path, tmp_path: Path
) -> None:
    written = library.write(system_lowered.module, system_lowered.target, tmp_path / "small.tar")
    path = _link(written[0], tmp_path)
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    # So that two models can be linked into one program.
    ours = [
        line.split()[-1] for line in symbols.splitlines() if "tvm_ffi__" in line or " T " in line
    ]
    assert f"__tvm_ffi_{PREFIX}linear" in " ".join(ours)
    assert all(PREFIX in name or name in ("_init", "_fini") for name in ours)
    code = "\n".join(line.strip() for line in _RUN_SYSTEM_LIB.splitlines())
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "logits.npy"), PREFIX]
    subprocess.run(command, cwd=Path(__file__).parent, check=True)
    expected = logits(tvm.runtime.load_module(str(linked)))
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_prefixes_are_identifiers() -> None:
    assert system_lib_prefix("RWKV-4-World-0.4B-q4f16_1") == "RWKV_4_World_0_4B_q4f16_1_"
    assert system_lib_prefix("my model/ü") == "my_model___"


def test_no_compiler_is_said_before_anything_is_compiled(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"needs a C\+\+ compiler, and none is on the PATH"):
        library.write(lowered.module, lowered.target, tmp_path / "small.so")


def test_a_linker_that_fails_is_reported(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho no disk >&2\nexit 1\n")
    failing.chmod(0o755)
    for name in ("g++", "gcc", "clang++", "clang", "cc"):
        (tmp_path / name).symlink_to(failing)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(TargetError, match=r'building for \{.*"llvm".*\} failed: .*'):
        library.write(lowered.module, lowered.target, tmp_path / "small.so", heard.append)
    assert heard == list(library.PARTS)
