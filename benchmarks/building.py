"""How long a build takes and how much memory it needs, for a random checkpoint of a given shape.

    python benchmarks/building.py 24x1024 --quantization q4f16_1

Writes the checkpoint in every layout that its version has (RWKV-4: `.pth`, sharded `.bin`,
safetensors; RWKV-7: `.pth`, fla's safetensors, old and new), builds each in a process of its own,
and checks that the shards are the same bytes. Needs the extra `test` (torch).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import checkpoints


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="blocks x channels, such as 24x1024")
    parser.add_argument("--version", type=int, default=4, choices=(4, 7))
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--dtype", default="float16", choices=checkpoints.DTYPES)
    parser.add_argument("--output", type=Path, help="keep the artifacts in this folder")
    options = parser.parse_args()
    layers, width = map(int, options.shape.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        name = f"random-{options.shape}"
        writing = _rwkv7 if options.version == 7 else _rwkv4
        layouts = dict(writing(root, name, layers, width, options.dtype))
        print(f"| {options.shape} {options.dtype} | seconds | weights | peak memory | shards |")
        print("|---|---|---|---|---|")
        digests = set()
        for layout, path in layouts.items():
            output = (options.output or root / "dist") / re.sub(r"\W", "", layout)
            size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))
            convert = _measure(path, output, options.quantization, "--convert-weights-only")
            compile_ = _measure(path, output, options.quantization, "--build-model-only")
            digest = _digest(output / f"{name}-{options.quantization}" / "params")
            digests.add(digest)
            print(
                f"| {layout}, convert | {convert[0]:.0f} | {size / 1e6:.0f} MB "
                f"| {convert[1]:.0f} MB | {digest} |"
            )
            print(f"| {layout}, compile | {compile_[0]:.0f} | | {compile_[1]:.0f} MB | |")
    if len(digests) > 1:
        raise SystemExit("The layouts gave different shards.")


def _rwkv4(
    root: Path, name: str, layers: int, width: int, dtype: str
) -> Iterator[tuple[str, Path]]:
    tensors = checkpoints.random_world(layers, width)
    yield ".pth", checkpoints.write_pth(root / "pth" / f"{name}.pth", tensors, dtype)
    yield "sharded .bin", checkpoints.write_hf_bin(root / "bin" / name, tensors, dtype, shards=3)
    yield "safetensors", checkpoints.write_hf_safetensors(root / "st" / name, tensors, dtype)


def _rwkv7(
    root: Path, name: str, layers: int, width: int, dtype: str
) -> Iterator[tuple[str, Path]]:
    tensors = checkpoints.random_rwkv7(layers, width)
    yield ".pth", checkpoints.write_pth(root / "pth" / f"{name}.pth", tensors, dtype)
    yield "fla, three shards", checkpoints.write_fla(root / "fla" / name, tensors, dtype, shards=3)
    old = checkpoints.write_fla(root / "old" / name, tensors, dtype, one_mix=True)
    yield "fla, one x_x", old


def _measure(path: Path, output: Path, quantization: str, part: str) -> tuple[float, float]:
    """Seconds, and the peak resident memory in megabytes, of one build."""
    command = [sys.executable, "-m", "mlc_rwkv_world", "build", "--hf-path", str(path)]
    command += ["--artifact-path", str(output), "--quantization", quantization, part]
    command += ["--target", "llvm", "--use-cache", "0"]
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *command], check=True, capture_output=True, text=True
    )
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - begin, int(done.stdout) * unit / 1e6


def _digest(params: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(params.glob("params_shard_*.bin")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
