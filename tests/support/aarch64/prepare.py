"""Makes the folder for `support.aarch64`: an aarch64 Python of Debian's with the package in it.

    cd tests && python -m support.aarch64.prepare

Debian's packages are unpacked beside the system, not installed; wheels come from where pip looks,
in the versions that this Python has; the package's own modules are compiled by Debian's
g++-aarch64-linux-gnu. Nothing is run until a test asks for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pybind11

from support.aarch64 import FOLDER, PACKAGE, READY, ROOT, SITE, TREE, package_digest

DEBIAN = ("python3-minimal", "libpython3-stdlib", "libpython3-dev", "libstdc++6")
# What an engine imports.
WHEELS = (
    *("apache-tvm", "apache-tvm-ffi", "ml-dtypes", "numpy", "safetensors"),
    *("filelock", "typing-extensions"),
)
GLIBC = ("2_17", "2_24", "2_27", "2_28")
MODULES = {"sampler_module.cc": "runtime/_sampler", "tokenizer_module.cc": "tokenizer/_core"}
# qemu shows this machine's, which names no features of an aarch64.
CPUINFO = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp atomics asimddp\n"


def run(*arguments: str | Path, **environment: str) -> None:
    subprocess.run(arguments, check=True, env={**os.environ, **environment})


def unpack_debian(folder: Path) -> None:
    """Debian's packages for aarch64 with all that they need, by an apt with folders of its own."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    config = folder / "apt.conf"
    config.write_text(
        'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\n'
        f'Dir::State "{folder}/state";\nDir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
    )
    apt = ("apt-get", "--quiet", "--quiet", "--yes")
    run(*apt, "update", APT_CONFIG=str(config))
    options = ("--no-install-recommends", "--download-only")
    run(*apt, "install", *options, *DEBIAN, APT_CONFIG=str(config))
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        run("dpkg", "-x", package, ROOT)
    (ROOT / "proc").mkdir(exist_ok=True)
    (ROOT / "proc" / "cpuinfo").write_text(CPUINFO)


def unpack_wheels(folder: Path, python: str) -> None:
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_aarch64")]
    digits = python.replace(".", "")
    abis = [word for abi in (f"cp{digits}", "abi3", "none") for word in ("--abi", abi)]
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder)
    kind = ("--only-binary", ":all:", "--implementation", "cp", "--python-version", python)
    run(*pip, *kind, *platforms, *abis, *wanted)
    for wheel in folder.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(SITE)


def compile_package(python: str) -> None:
    def without_builds(_: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if name.endswith(".so") or name == "__pycache__"]

    name = "mlc_rwkv_world"
    shutil.copytree(TREE / name, PACKAGE / name, ignore=without_builds)
    headers = ROOT / "usr" / "include"
    folders = (
        TREE / "cpp" / "include",
        pybind11.get_include(),
        headers,
        headers / f"python{python}",
    )
    includes = [word for folder in folders for word in ("-I", str(folder))]
    # As CMakeLists.txt has it: no product is fused with a sum.
    flags = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden")
    sources = sorted((TREE / "cpp" / "src").glob("*.cc"))
    suffix = f".cpython-{python.replace('.', '')}-aarch64-linux-gnu.so"
    for source, module in MODULES.items():
        binding = TREE / "cpp" / "python" / source
        output = PACKAGE / name / f"{module}{suffix}"
        run("aarch64-linux-gnu-g++", *flags, *includes, binding, *sources, "-o", output)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for folder in (ROOT, SITE, PACKAGE):
        folder.mkdir(parents=True)
    unpack_debian(FOLDER / "apt")
    (python,) = (ROOT / "usr" / "bin").glob("python3.*")
    unpack_wheels(FOLDER / "wheels", python.name.removeprefix("python"))
    compile_package(python.name.removeprefix("python"))
    for name in ("apt", "wheels"):
        shutil.rmtree(FOLDER / name)
    READY.write_text(package_digest())


if __name__ == "__main__":
    main()
