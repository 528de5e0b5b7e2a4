"""Builds the folder that `gpu.sh run` needs on a machine with a GPU, and shows what it weighs.

It holds `gpu.sh` and one archive: libraries of this package for the World models' shapes, without
weights; TVM's runtime and tvm_ffi for the Python there; CUDA's runtime library; this package's
Python files, of which the references are used; the package `rwkv`; and the scripts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule

import mlc_rwkv_world
from mlc_rwkv_world.compiler import library, metadata, pipeline
from mlc_rwkv_world.compiler.export import compute_dtype, export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.versions.table import settled

LIMIT = 64 * 2**20
# Blocks, channels, and hidden channels as a multiple of them.
SIZES = {
    "4-1.5B": (24, 2048, 4.0),
    "4-3B": (32, 2560, 4.0),
    "4-7B": (32, 4096, 4.0),
    "5-1.5B": (24, 2048, 3.5),
    "5-7B": (32, 4096, 3.5),
    "6-1.6B": (24, 2048, 3.5),
    "6-7B": (32, 4096, 3.5),
    "7-1.5B": (24, 2048, 4.0),
    "7-2.9B": (32, 2560, 4.0),
    "7-7.2B": (32, 4096, 4.0),
}
# Most important first; `peer:` is the package `rwkv` at the shape of a model.
PLAN = "7-7.2B,4-7B,peer:7-7.2B,peer:4-7B,7-1.5B,6-1.6B,5-1.5B,4-1.5B,7-2.9B,4-3B"
FORMATS = ("q4f16_1", "q0f16")
# A short twin has two blocks and a small vocabulary, which a CPU can follow in float32.
VOCABULARY, CHECKED_VOCABULARY = 65536, 2048
HERE = Path(__file__).parent
SCRIPTS = ("gpu_model.py", "gpu_peer.py", "gpu_run.py")


def main() -> None:
    """Builds, and ends with an error where the folder is too large to be carried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda -arch=sm_90")
    parser.add_argument(
        "--models",
        default=PLAN,
        help="comma-separated, in the order of the run: names such as 7-1.5B, or version-blocks x "
        "channels such as 7-4x1024; peer:... for the package rwkv at that shape",
    )
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--python", default="3.12", help="the Python there")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of the longest prefill")
    parser.add_argument("--batch", type=int, default=64, help="sequences of the largest batch")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as text:
        inside = Path(text)
        models(inside, options)
        _runtime(inside, options.python)
        _package(inside)
        for script in SCRIPTS:
            shutil.copy2(HERE / script, inside)
        _show(inside)
        with tarfile.open(options.folder / "carried.tar.xz", "w:xz") as archive:
            archive.add(inside, ".")
    shutil.copy2(HERE / "gpu.sh", options.folder)
    total = _show(options.folder)
    if total > LIMIT:
        sys.exit(f"{options.folder} has {total / 2**20:.1f} MiB, more than {LIMIT >> 20} MiB")


def models(folder: Path, options: Any) -> None:
    """Builds what `options.models` lists into `folder`/models, and writes plan.json."""
    plan: list[dict[str, Any]] = []
    (folder / "models").mkdir()
    for name in options.models.split(","):
        shape = name.removeprefix("peer:")
        full = config_of(shape, options.chunk, options.batch)
        if name != shape:
            plan.append({"model": shape, "peer": dataclasses.asdict(full)})
            continue
        twin = twin_of(full)
        for fmt in options.formats.split(","):
            step = {"model": f"{name}-{fmt}"}
            for role, config in (("check", twin), ("measure", full)):
                path = folder / "models" / f"{name}-{fmt}{'-twin' * (config == twin)}.so"
                step[role] = path.name
                if path.exists():
                    continue
                begin = time.monotonic()
                _library(path, config, fmt, options.target)
                taken, size = time.monotonic() - begin, path.stat().st_size
                print(f"{path.name}: {size / 1e6:.1f} MB, {taken:.0f} s", flush=True)
            plan.append(step)
    (folder / "plan.json").write_text(json.dumps(plan))


def config_of(name: str, chunk: int, batch: int) -> ModelConfig:
    """The configuration of a size, or of version-blocks x channels; ends where it is neither."""
    match = re.fullmatch(r"([4567])-(\d+)x(\d+)", name)
    if name not in SIZES and match is None:
        sys.exit(f"--models: {name!r} is none of {', '.join(SIZES)} and no 7-blocks x channels")
    version = int(name[0])
    layers, width, ratio = SIZES.get(name) or (0, 0, 4.0)
    if match is not None:
        layers, width = int(match[2]), int(match[3])
    config = ModelConfig(
        model_version=version,
        hidden_size=width,
        intermediate_size=int(ratio * width) // 32 * 32,
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        rescale_every=6,
        prefill_chunk_size=chunk,
        max_batch_size=batch,
        fp32_layers=(),
        **_ranks(version, width),
    )
    return settled(config)


def twin_of(config: ModelConfig) -> ModelConfig:
    """The short model of the same width that a CPU can follow."""
    return dataclasses.replace(
        config,
        num_hidden_layers=2,
        vocab_size=CHECKED_VOCABULARY,
        rescale_every=2 if config.rescale_every else 0,
        prefill_chunk_size=256,
        # One block of either type.
        fp32_layers=(0,),
    )


def _ranks(version: int, width: int) -> dict[str, Any]:
    """The ranks of the published models, by the formula behind them."""
    if version == 6:
        large = width >= 4096
        return {
            "mix_low_rank_dim": 64 if large else 32,
            "decay_low_rank_dim": 128 if large else 64,
        }
    if version != 7:
        return {}

    def rank(factor: float, power: float) -> int:
        return max(32, round(factor * float(width**power) / 32) * 32)

    decay = rank(1.8, 0.5)
    return {
        "decay_low_rank_dim": decay,
        "a_low_rank_dim": decay,
        "v_low_rank_dim": rank(1.3, 0.5),
        "gate_low_rank_dim": rank(0.6, 0.8),
    }


def _library(path: Path, config: ModelConfig, quantization: str, target_text: str) -> None:
    fmt, target = format_named(quantization), resolve(target_text)
    dtype = compute_dtype(fmt, target.kind)
    described = metadata.describe(config, fmt, parameters(config, fmt), target, dtype)
    mod = export(config, fmt, dtype)
    lowered: IRModule = pipeline.run(mod, target.target, config, described, None)
    library.write(lowered, target, path)
    path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(config)))


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
                "rwkv",
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
