"""`python -m mlc_rwkv_world doctor`, in child interpreters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_in import (
    PACKAGE_ROOT,
    TVM,
    run,
    write,
    write_host,
    write_metadata,
    write_no_torch,
    write_version,
)

DOCTOR = ["-m", "mlc_rwkv_world", "doctor"]


@pytest.mark.slow
def test_with_the_real_tvm_and_no_host(tmp_path: Path) -> None:
    import tvm
    import tvm_ffi

    ours = write_metadata(tmp_path / "our-site")
    result = run(DOCTOR, [write_no_torch(tmp_path / "no-torch"), ours, PACKAGE_ROOT])
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert f"TVM {tvm.__version__}, compiler and runtime, of apache-tvm" in result.stdout
    assert f"tvm-ffi {tvm_ffi.__version__}" in lines
    assert "entry point tvm.backends: mlc_rwkv_world.stock.autoload:autoload" in lines
    assert "plugin: armed by import tvm" in lines
    assert "mlc_llm: not installed; building and chatting need none" in lines


@pytest.fixture
def path(tmp_path: Path) -> list[Path]:
    tvm = write(tmp_path / "tvm-site", {**TVM, "tvm_ffi/__init__.py": "__version__ = '0'\n"})
    write(tvm, {"tvm/__init__.py": "__version__ = '9.9'\n" + TVM["tvm/__init__.py"]})
    return [tvm, write_metadata(tmp_path / "our-site"), tmp_path / "host-site", PACKAGE_ROOT]


def test_with_a_host(path: list[Path]) -> None:
    write_host(path[2])
    result = run(DOCTOR, path)
    assert result.returncode == 0, result.stderr
    assert f"mlc_llm without a version, {path[2] / 'mlc_llm'}" in result.stdout
    assert "TVM 9.9, compiler and runtime, of no distribution" in result.stdout
    assert "  model types rwkv_world, rwkv, and rwkv5 to rwkv7: done" in result.stdout
    assert ": waiting" not in result.stdout
    assert "the same prompt twice gives two answers" in result.stdout


@pytest.mark.slow
def test_says_what_could_not_be_done(path: list[Path]) -> None:
    write_host(
        path[2],
        model__model="raise ImportError('TVM of another time')",
        interface__gen_config="def gen_config(everything): return 1\n",
    )
    write_version(path[2], "0.31")
    result = run(DOCTOR, path)
    assert result.returncode == 0, result.stderr
    assert "mlc_llm 0.31 (tested: 0.20)" in result.stdout
    cannot = "mlc_llm.model.model cannot be imported (ImportError: TVM of another time)"
    assert cannot in result.stdout
    assert "  gen_config: TypeError: " in result.stdout


@pytest.mark.slow
def test_what_a_version_has_right_is_left_alone(path: list[Path]) -> None:
    write_version(write_host(path[2]), "0.21")
    code = (
        "import dataclasses, mlc_rwkv_world.stock.defects as d\n"
        "d.DEFECTS = tuple(dataclasses.replace(x, fixed_in='0.21') for x in d.DEFECTS)\n"
        "import mlc_llm.probe\n"
        "from mlc_rwkv_world.cli import doctor\n"
        "doctor.main([])"
    )
    result = run(["-c", code], path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[0])
    assert "rwkv_world" in found["models"] and found["pipeline"]
    assert found["templates"]["rwkv_world"] == "the host's"
    assert found["templates"]["rwkv_g1"] == "ours"
    assert not found["asjson"] and not found["aliased"]
    assert "  names that TVM 0.27 moved: not needed, this version is right" in result.stdout
    assert "  conversation templates: done" in result.stdout
    assert "  model types rwkv_world, rwkv, and rwkv5 to rwkv7: done" in result.stdout
    assert "(prefix cache): fixed in this version" in result.stdout


@pytest.mark.slow
def test_turned_off(path: list[Path]) -> None:
    write_host(path[2])
    result = run(DOCTOR, path, MLC_RWKV_WORLD_DISABLE="1")
    assert "plugin: turned off by MLC_RWKV_WORLD_DISABLE" in result.stdout.splitlines()
