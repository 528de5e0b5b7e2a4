"""Builds the folder that `gpu.sh run` needs on a machine with a GPU, and shows what it weighs.

It holds libraries of this package for the World models' shapes, without weights; TVM's runtime and
tvm_ffi for the Python there; CUDA's runtime library; this package's Python files, of which the
reference is used; and the two scripts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import tvm
from tvm import IRModule

import mlc_rwkv_world
from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import format_named

LIMIT = 64 * 2**20
SHAPES = {"1.5B": (24, 2048), "3B": (32, 2560), "7B": (32, 4096)}
# Two blocks of each width with a small vocabulary, which a CPU can follow in float32.
CHECKED = "check-"
FORMATS = ("q0f16", "q4f16_1")
VOCABULARY, CHECKED_VOCABULARY = 65536, 2048
HERE = Path(__file__).parent


def main() -> None:
    """Builds, and ends with an error where the folder is too large to be carried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda -arch=sm_90")
    parser.add_argument(
        "--models",
        default=",".join([*(CHECKED + name for name in SHAPES), *SHAPES]),
        help="comma-separated: 1.5B, 3B, 7B, blocks x channels such as 4x1024; check-... for a "
        "short model of that width that is compared with a reference",
    )
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--python", default="3.12", help="the Python there")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of the longest prefill")
    parser.add_argument("--batch", type=int, default=64, help="sequences of the largest batch")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        for fmt in options.formats.split(","):
            begin = time.monotonic()
            path = _library(options, name, fmt)
            size = path.stat().st_size
            print(f"{path.name}: {size / 1e6:.1f} MB, {time.monotonic() - begin:.0f} s", flush=True)
    _runtime(options.folder, options.python)
    _package(options.folder)
    for script in ("gpu.sh", "gpu_run.py"):
        shutil.copy2(HERE / script, options.folder)
    total = _show(options.folder)
    if total > LIMIT:
        sys.exit(f"{options.folder} has {total / 2**20:.1f} MiB, more than {LIMIT >> 20} MiB")


def _shape(name: str) -> tuple[int, int]:
    """Blocks and channels."""
    plain = name.removeprefix(CHECKED)
    match = re.fullmatch(r"(\d+)x(\d+)", plain)
    if plain not in SHAPES and match is None:
        sys.exit(f"--models: {name!r} is none of {', '.join(SHAPES)} and no blocks x channels")
    layers, width = SHAPES[plain] if match is None else (int(match[1]), int(match[2]))
    return (2 if name.startswith(CHECKED) else layers), width


def _library(options: argparse.Namespace, name: str, quantization: str) -> Path:
    layers, width = _shape(name)
    checked = name.startswith(CHECKED)
    fmt, target = format_named(quantization), resolve(options.target)
    config = ModelConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        vocab_size=CHECKED_VOCABULARY if checked else VOCABULARY,
        rescale_every=2 if checked else 6,
        prefill_chunk_size=256 if checked else options.chunk,
        max_batch_size=options.batch,
        # Each checked model has one block of either type.
        fp32_layers=(0,) if checked else (),
    )
    described = metadata.describe(config, fmt, parameters(config, fmt), target, fmt.dtype)
    mod = export(config, fmt, fmt.dtype)
    lowered: IRModule = pipeline.run(mod, target.target, config, described, None)
    path = Path(options.folder) / "models" / f"{name}-{quantization}.so"
    path.parent.mkdir(exist_ok=True)
    library.write(lowered, target, path)
    return path


def _runtime(folder: Path, version: str) -> None:
    """TVM's Python with its runtime libraries, tvm_ffi for the Python there, libcudart."""
    python, libraries = folder / "python", folder / "lib"
    shutil.rmtree(python, ignore_errors=True)
    libraries.mkdir(exist_ok=True)
    package = Path(tvm.__file__).parent
    wanted = shutil.ignore_patterns(
        *(
            "__pycache__",
            "libtvm_compiler*",
            "include",
            "src",
            "3rdparty",
            "cmake",
            "licenses",
            "web",
        )
    )
    shutil.copytree(package, python / "tvm", ignore=wanted, symlinks=False)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--python-version", version, "--implementation", "cp"),
            *(
                "--dest",
                str(folder / "wheels"),
                "apache-tvm-ffi==0.1.14.post1",
                "typing-extensions",
            ),
        ],
        check=True,
    )
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(python)
    shutil.rmtree(folder / "wheels")
    shutil.rmtree(python / "tvm_ffi" / "include", ignore_errors=True)
    cudart = next(
        (p for root in ("/usr/local/cuda",) for p in Path(root).glob("**/libcudart.so.13")), None
    )
    if cudart is not None:
        shutil.copy2(cudart.resolve(), libraries / "libcudart.so.13")
    (folder / "built.json").write_text(json.dumps({"tvm": tvm.__version__, "python": version}))


def _package(folder: Path) -> None:
    """This package without anything compiled."""
    package = Path(mlc_rwkv_world.__file__).parent
    for source in package.rglob("*.py"):
        target = folder / "python" / package.name / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _show(folder: Path) -> int:
    sizes = {
        entry.name: sum(p.stat().st_size for p in [entry, *entry.rglob("*")] if p.is_file())
        for entry in sorted(folder.iterdir())
    }
    for name, size in sizes.items():
        print(f"{size / 2**20:8.1f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.1f} MiB  in all, of {LIMIT >> 20}")
    return sum(sizes.values())


if __name__ == "__main__":
    main()
