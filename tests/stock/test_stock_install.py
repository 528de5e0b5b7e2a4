"""Our wheel and editable install, as an installer unpacks them, beside stand-ins and alone.

The wheels are the build system's own, without the compiled tokenizer, which nothing here needs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from stand_in import HANG, PYPROJECT, TVM, with_path, write, write_host

pytest.importorskip("scikit_build_core", reason="needs scikit-build-core, of the test extra")

SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "NOTICE")
BUILD_HELP = "usage: python -m mlc_llm.build"
BACKEND = (
    "import sys, scikit_build_core.build as backend\n"
    "getattr(backend, sys.argv[1])(sys.argv[2], {'wheel.cmake': 'false'})"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`wheel("build_wheel" or "build_editable")`, from a copy of what a clone holds."""
    source = tmp_path_factory.mktemp("clone")
    root = PYPROJECT.parent
    for name in SOURCES:
        shutil.copy(root / name, source)
    for package in ("mlc_rwkv_world", "mlc_llm"):
        skipped = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(root / package, source / package, ignore=skipped)

    def make(hook: str) -> Path:
        place = tmp_path_factory.mktemp(hook)
        command = [sys.executable, "-c", BACKEND, hook, str(place)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        (built,) = place.glob("*.whl")
        return built

    return make


class Environment:
    """A virtual environment without pip, whose site folder has a stand-in for TVM."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        write(self.site, TVM)
        # What the environment holds besides: the part of TVM's distribution that doctor reads.
        record = {"RECORD": "tvm/__init__.py,,\n", "METADATA": "Name: mlc-ai-cpu\nVersion: 0.20\n"}
        write(self.site / "mlc_ai_cpu-0.20.dist-info", record)
        write(self.site, {"tvm_ffi/__init__.py": "__version__ = '0'\n"})
        tvm = (self.site / "tvm" / "__init__.py").read_text(encoding="utf-8")
        write(self.site, {"tvm/__init__.py": "__version__ = '9.9'\n" + tvm})

    def pip(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        options = ["--disable-pip-version-check", "--quiet"]
        subprocess.run([*command, *options], check=True, capture_output=True)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", wheel)

    def files(self) -> dict[str, bytes]:
        """What lies in the site folder, but for what interpreters leave there."""
        return {
            str(path.relative_to(self.site)): path.read_bytes()
            for path in self.site.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def run(self, *arguments: str, path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *arguments],
            env=with_path(path),
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )

    def models(self, path: Sequence[Path] = ()) -> list[str]:
        """What `python -m mlc_llm` finds in its registry."""
        result = self.run("-m", "mlc_llm", path=path)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        return sorted(json.loads(result.stdout)["models"])

    def builds(self, path: Sequence[Path] = ()) -> bool:
        result = self.run("-m", "mlc_llm.build", "--help", path=path)
        return result.returncode == 0 and result.stdout.startswith(BUILD_HELP)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.mark.slow
def test_install_and_uninstall(wheel: Callable[[str], Path], environment: Environment) -> None:
    write_host(environment.site)
    before = environment.files()
    environment.install(wheel("build_wheel"))
    added = environment.files().keys() - before.keys()
    # Nothing of TVM's or of the host's is written, and nothing that runs at every start.
    assert {name.split("/")[0].split("-")[0] for name in added} == {"mlc_rwkv_world", "mlc_llm"}
    assert [name for name in added if name.startswith("mlc_llm/")] == ["mlc_llm/build.py"]
    assert not [name for name in added if name.endswith(".pth")]
    assert before.items() <= environment.files().items()

    assert (
        environment.models() == ["llama", "rwkv", "rwkv5", "rwkv6", "rwkv7", "rwkv_world"]
        and environment.builds()
    )
    told = environment.run("-m", "mlc_rwkv_world", "doctor").stdout
    assert "TVM 9.9, compiler and runtime, of mlc-ai-cpu 0.20" in told
    assert "entry point tvm.backends: mlc_rwkv_world.stock.autoload:autoload" in told

    environment.pip("uninstall", "--yes", "mlc-rwkv-world")
    assert environment.files() == before
    assert environment.models() == ["llama", "rwkv5", "rwkv6"]
    assert not environment.builds()
    # Without the host, too: not even an empty namespace is left.
    shutil.rmtree(environment.site / "mlc_llm")
    result = environment.run("-c", "import tvm, importlib.util as u; print(u.find_spec('mlc_llm'))")
    assert (result.stdout, result.stderr) == ("None\n", "")


def test_what_the_wheel_holds(wheel: Callable[[str], Path]) -> None:
    with zipfile.ZipFile(wheel("build_wheel")) as archive:
        names = archive.namelist()
    assert "mlc_llm/build.py" in names and "mlc_llm/__init__.py" not in names
    assert "mlc_rwkv_world/tokenizer/tokenizer_model" in names
    page = {
        path.name for path in (Path(__file__).parents[2] / "mlc_rwkv_world/serving/page").iterdir()
    }
    assert {f"mlc_rwkv_world/serving/page/{name}" for name in page} <= {*names}
    assert {"index.html", "main.js", "base.css"} <= page
    assert not [name for name in names if name.startswith(("tvm", "tests", "demo"))]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["none", "site", "elsewhere"])
def test_editable(
    wheel: Callable[[str], Path], environment: Environment, tmp_path: Path, where: str
) -> None:
    environment.install(wheel("build_editable"))
    path = []
    if where == "site":
        write_host(environment.site)
    elif where == "elsewhere":
        path = [write_host(tmp_path / "host-site")]
    assert environment.builds(path)
    if where == "none":
        result = environment.run("-c", "import tvm, mlc_llm; print(mlc_llm.__file__)")
        assert (result.stdout, result.stderr) == ("None\n", "")
    else:
        assert environment.models(path) == [
            "llama",
            "rwkv",
            "rwkv5",
            "rwkv6",
            "rwkv7",
            "rwkv_world",
        ]
