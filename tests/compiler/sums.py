"""How far off a product is from the exact one, on every target that something here runs.

`PYTHONPATH=tests python tests/compiler/sums.py [TARGET...] [--widths=256,1024]` prints a table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from emulated_model import built
from support.modules import small_config
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from mlc_rwkv_world.compiler import pipeline
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.layers import Linear
from mlc_rwkv_world.storage import Stored

WIDTHS = (256, 1024, 4096)
TYPES = ("float32", "float16")
TARGETS = {
    "llvm": "llvm",
    "cuda": "cuda -arch=sm_90",
    "metal": "metal -host=llvm",
    "webgpu": "webgpu -host=llvm",
}
# Of a prompt, and of a step.
ROWS = {"prompt": 40, "step": 1}
_OUTER = 128


class _Product(nn.Module):  # type: ignore[misc]
    """x [n, width] W [128, width], whose result is float32 as a key's is."""

    def __init__(self, width: int, dtype: str) -> None:
        super().__init__()
        self.linear = Linear(width, _OUTER, Stored(0, dtype))

    def prompt(self, x: Tensor) -> Tensor:
        return self.linear(x, out_dtype="float32")

    def step(self, x: Tensor) -> Tensor:
        return self.linear(x, out_dtype="float32")


def product_errors(kind: str, width: int, dtype: str) -> dict[str, float]:
    """Relative root mean square of the error of a prompt's product and of a step's.

    Inputs and weights are random values of `dtype`; a GPU's stand-in has to be installed.
    """
    target = resolve(TARGETS[kind])
    spec: dict[str, Any] = {
        name: {
            "x": nn.spec.Tensor([1 if rows == 1 else "seq_len", width], dtype),
            "$": {"param_mode": "packed"},
        }
        for name, rows in ROWS.items()
    }
    mod, _ = _Product(width, dtype).export_tvm(spec)
    mod = pipeline.run(mod, target.target, small_config(prefill_chunk_size=64), {}, None)
    device = tvm.device("cpu" if kind == "llvm" else kind, 0)
    with tempfile.TemporaryDirectory() as folder:
        machine = tvm.relax.VirtualMachine(built(mod, target, Path(folder)), device)
    rng = np.random.default_rng(width)
    weight = (rng.standard_normal((_OUTER, width)) * width**-0.5).astype(dtype)
    held = [tvm.runtime.tensor(weight, device)]
    errors = {}
    for name, rows in ROWS.items():
        x = rng.standard_normal((rows, width)).astype(dtype)
        found = machine[name](tvm.runtime.tensor(x, device), held).numpy()
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
        errors[name] = float((np.square(found - exact).mean() / np.square(exact).mean()) ** 0.5)
    return errors


def all_errors(kind: str, widths: tuple[int, ...] = WIDTHS) -> dict[tuple[str, int], Any]:
    """`product_errors` by type and width."""
    return {
        (dtype, width): product_errors(kind, width, dtype) for dtype in TYPES for width in widths
    }


def measured(kind: str, folder: Path, widths: tuple[int, ...] = WIDTHS) -> Any:
    """`all_errors`, on a stand-in that is installed first, or a text where there is none."""
    from support import cuda_emulation, metal_emulation, webgpu

    if kind == "cuda":
        return cuda_emulation.missing() or cuda_emulation.run("sums:all_errors", kind, widths)
    if kind == "metal":
        if why := metal_emulation.missing():
            return why
        metal_emulation.install(folder)
    if kind == "webgpu":
        if why := webgpu.missing():
            return why
        webgpu.install(folder)
    return all_errors(kind, widths)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    widths = next((a.split("=")[1] for a in arguments if a.startswith("--widths=")), "")
    chosen = tuple(map(int, widths.split(","))) if widths else WIDTHS
    out = sys.stdout
    out.write(f"{'':8}{'':9}" + "".join(f"{width:>20}" for width in chosen) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        for kind in [a for a in arguments if a in TARGETS] or list(TARGETS):
            found = measured(kind, Path(folder), chosen)
            if isinstance(found, str):
                out.write(f"{kind:8}{found}\n")
                continue
            for dtype in TYPES:
                cells = (found[dtype, width] for width in chosen)
                text = "".join(f"{c['prompt']:>11.1e}{c['step']:>9.1e}" for c in cells)
                out.write(f"{kind:8}{dtype:9}{text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
