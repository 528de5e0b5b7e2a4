"""Which libraries run: those that a list names and that are as listed, and those a person names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.artifacts import list_again, telltale

from mlc_rwkv_world.artifact.registry import register
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.errors import ArtifactError
from mlc_rwkv_world.runtime import load
from mlc_rwkv_world.runtime.verify import verify

NAME = "demo-q4f16_1"


@pytest.fixture
def artifact(demo_artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the smallest artifact, to be changed."""
    return Path(shutil.copytree(demo_artifact("q4f16_1"), tmp_path / "somewhere" / NAME))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a library that runs leaves behind."""
    return tmp_path / "it-ran"


def library_of(folder: Path) -> Path:
    (path,) = folder.glob("RWKV*.so")
    return path


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlc_rwkv_world", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def chat(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return run("chat", *arguments, "--prompt", "Hi", "--max-tokens", "2", **options)


def test_a_library_that_a_person_names_runs(artifact: Path, mark: Path, tmp_path: Path) -> None:
    """And so the others below would be seen to run."""
    evil = telltale(tmp_path / "evil.so", mark)
    with pytest.raises(ArtifactError, match=r"evil\.so cannot be loaded"):
        load(artifact, "cpu", model_lib=evil)
    assert mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["demo-q4f16_1-llvm.so", "a.so", "params/a.so"])
def test_a_library_that_is_not_listed_is_passed_over_and_told(
    artifact: Path, mark: Path, place: str
) -> None:
    evil = telltale(artifact / place, mark)
    os.utime(evil, (2e9, 2e9))
    done = chat("--model", artifact)
    assert (done.returncode, mark.exists()) == (0, False), done.stderr
    assert done.stderr == f"note: {evil} is not listed in SHA256SUMS and does not run.\n"
    done = run("verify", artifact)
    assert done.returncode == 6
    assert f"FAULT  {evil}: is not listed in SHA256SUMS" in done.stdout
    assert "1 of" in done.stderr
    assert run("doctor", artifact).stdout.splitlines()[-1].startswith(f"  library {evil}: ")
    assert not mark.exists()


def test_a_library_is_the_file_that_was_checked(
    artifact: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not another of its name that the system finds first where no folder stands before it."""
    path = library_of(artifact)
    (tmp_path / "lib").mkdir()
    telltale(tmp_path / "lib" / path.name, mark)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    for arguments in (["params"], [".", "--model-lib", path.name]):
        done = chat("--model", *arguments, cwd=artifact)
        assert (done.returncode, done.stderr) == (0, "")
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("with_list", [True, False])
def test_parameters_alone_run_nothing(artifact: Path, mark: Path, with_list: bool) -> None:
    """Whatever the stranger put among them, and under whatever name they were taken."""
    params = artifact / "params"
    telltale(params / "a.so", mark)
    if with_list:
        list_again(params)
        inner = Path(shutil.copytree(params, params / "params"))
        assert (params / "SHA256SUMS").read_text().count("a.so") == 1
        (inner / "SHA256SUMS").unlink()
        list_again(params)
        assert "params/mlc-chat-config.json" in (params / "SHA256SUMS").read_text()
    (artifact / "SHA256SUMS").unlink()
    library_of(artifact).unlink()
    alone = artifact.parent / "alone"
    shutil.copytree(params, alone)
    for model in (params, params / "mlc-chat-config.json", alone):
        done = chat("--model", model)
        assert done.returncode == 6
        assert re.search(r"no compiled library that SHA256SUMS lists \(a\.so is not", done.stderr)
    assert not mark.exists()


def test_a_damaged_library_is_refused_and_none_runs_in_its_place(artifact: Path) -> None:
    path = library_of(artifact)
    shutil.copy(path, artifact / f"{NAME}-x86_64-other.so")
    list_again(artifact)
    assert len(find(artifact).libraries) == 2
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    os.utime(path, (2e9, 2e9))
    with pytest.raises(ArtifactError, match=re.escape(f"{path} was changed since it was built")):
        load(artifact, "cpu")
    path.unlink()
    with pytest.raises(ArtifactError, match=re.escape(f"{path} is missing. Build or copy")):
        load(artifact, "cpu")
    assert str(path) in {str(v.path) for v in verify(find(artifact)) if v.fault is not None}


def test_a_listed_library_that_is_a_link_out_of_the_folder(artifact: Path) -> None:
    path = library_of(artifact)
    path.rename(artifact.parent / path.name)
    path.symlink_to(artifact.parent / path.name)
    with pytest.raises(ArtifactError, match=r"is a link that leaves its folder: refused"):
        load(artifact, "cpu")


def test_without_a_list_only_a_library_that_is_named_runs(artifact: Path) -> None:
    """As stock mlc_llm leaves its artifacts."""
    (artifact / "SHA256SUMS").unlink()
    path = library_of(artifact)
    with pytest.raises(ArtifactError, match=rf"{re.escape(path.name)} is not listed and does not"):
        load(artifact, "cpu")
    assert load(artifact, "cpu", model_lib=path).notes == []
    done = run("verify", artifact)
    assert done.returncode == 0
    assert "A library in it runs only where --model-lib names it." in done.stdout
    quick = ["--no-limits", "--prefill", "1", "--batch", "1", "--rounds", "1", "--steps", "1"]
    assert run("bench", artifact, "--model-lib", path, *quick).returncode == 0


def test_verify_tells_of_files_that_are_not_listed(artifact: Path) -> None:
    (artifact / "notes.txt").write_text("mine")
    (artifact / "more").mkdir()
    (artifact / "more" / "deep.txt").write_text("mine")
    (artifact / "link").symlink_to("more")
    done = run("verify", artifact)
    assert done.returncode == 0, done.stdout
    for name in ("notes.txt", "more/deep.txt", "link"):
        assert f"note: {artifact / name} is not listed in SHA256SUMS" in done.stdout
    (artifact / "params" / "extra.json").write_text("{}")
    done = run("verify", artifact)
    assert done.returncode == 6
    assert f"FAULT  {artifact / 'params/extra.json'}: is not listed" in done.stdout


@pytest.mark.slow
def test_a_name_runs_what_this_user_built(
    artifact: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what lies under that name where one stands, which only its path runs."""
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "home"))
    assert register(artifact)
    place = tmp_path / "download"
    theirs = place / "dist" / NAME
    shutil.copytree(artifact, theirs)
    telltale(library_of(theirs), mark)
    done = chat("--model", NAME, cwd=place)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    list_again(theirs)
    assert chat("--model", NAME, cwd=place).returncode == 0
    assert not mark.exists()
    shutil.rmtree(artifact)
    done = chat("--model", NAME, cwd=place)
    assert done.returncode == 2
    assert f"{theirs} was not built here by you" in done.stderr
    assert done.stderr.endswith(f"give its path: --model dist/{NAME}\n")
    assert not mark.exists()
    assert run("doctor", f"dist/{NAME}", cwd=place).returncode == 0
    assert not mark.exists()
    chat("--model", f"dist/{NAME}", cwd=place)
    assert mark.exists()


@pytest.mark.slow
def test_doctor_shows_where_an_artifact_stands_and_whether_its_name_runs_it(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "home"))
    place = f"artifact {artifact / 'params'}: build id "
    (line,) = [x for x in run("doctor", artifact).stdout.splitlines() if x.startswith(place)]
    assert line.endswith("; only its path runs it: it was not built here by you")
    assert register(artifact)
    for arguments in ([], [NAME]):
        said = run("doctor", *arguments, cwd=tmp_path).stdout.splitlines()
        (line,) = [x for x in said if x.startswith(place)]
        assert "only its path" not in line
    (artifact / "params/mlc-chat-config.json").unlink()
    missing = artifact / "params/mlc-chat-config.json"
    assert f"artifact {artifact}: {missing} is missing" in run("doctor").stdout
    assert run("doctor", "no-such-model").returncode == 3
