"""Registers, shared memory and spills of every CUDA kernel of a model, as a Markdown table.

    python benchmarks/gpu_resources.py 2x4096 --quantization q4f16_1 --arch sm_80 sm_90

Needs nvcc and no GPU. Kernels are shared between blocks, so that two blocks show all of a model's.
"""

from __future__ import annotations

import argparse

import tvm
import tvm_ffi
from tvm import relax

from mlc_rwkv_world.compiler import metadata, pipeline
from mlc_rwkv_world.compiler.cuda_resources import resources
from mlc_rwkv_world.compiler.export import export, parameters
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named


def main() -> None:
    """Prints a table for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="blocks x channels, such as 2x4096")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--arch", nargs="+", default=["sm_90"])
    parser.add_argument("--all", action="store_true", help="kernels of stock's functions too")
    options = parser.parse_args()
    layers, width = map(int, options.shape.split("x"))
    for arch in options.arch:
        source = cuda_source(layers, width, options.quantization, arch, options.all)
        print(f"\n{options.shape} {options.quantization} {arch}\n")
        print("| kernel | threads | registers | shared memory | stack | spilled |")
        print("|---|---|---|---|---|---|")
        for one in resources(source, arch):
            print(
                f"| `{one.kernel.removesuffix('_kernel')}` | {one.threads} | {one.registers} "
                f"| {one.shared} | {one.stack} | {one.spilled} |"
            )


def cuda_source(
    layers: int, width: int, quantization: str, arch: str, everything: bool = True
) -> str:
    """The CUDA source of a model's library; of our own functions alone unless `everything`."""
    fmt, target = format_named(quantization), resolve(f"cuda -arch={arch}")
    config = ModelConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        vocab_size=65536,
        rescale_every=6 if fmt.rescales else 0,
        fp32_layers=(),
    )
    described = metadata.describe(config, fmt, parameters(config, fmt), target, fmt.dtype)
    added = STOCK if everything else None
    mod = export(config, fmt, fmt.dtype, added)
    lowered = pipeline.run(mod, target.target, config, described, None, additions=added)
    sources: list[str] = []

    def keep(code: str, *_: object) -> bytes:
        sources.append(code)
        return b"// not compiled here"

    # TVM asks for machine code if it can have it, and is given none.
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", keep, override=True)
    nothing = tvm.transform.Sequential([])
    built = relax.build(lowered, target=target.target, relax_pipeline=nothing)
    waiting = [built.mod]
    while waiting and not sources:
        current = waiting.pop()
        if str(current.kind) == "cuda":
            sources.append(current.inspect_source())
        waiting += list(current.imports)
    return sources[0]


if __name__ == "__main__":
    main()
