"""The hot CUDA kernels at the size of the 7B model, assembled by nvcc for each architecture."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import tvm
from tvm import IRModule, tirx

from mlc_rwkv_world.compiler.cuda import compiling
from mlc_rwkv_world.compiler.cuda_resources import resources
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import TargetError
from mlc_rwkv_world.kernels.cuda import matmul as matmul_cuda
from mlc_rwkv_world.kernels.cuda import matvec as matvec_cuda
from mlc_rwkv_world.kernels.cuda.norm_mix import norm_mix
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_script import quick_parsing
from mlc_rwkv_world.versions.rwkv4.cuda.time_mix import time_mix_step
from mlc_rwkv_world.versions.rwkv5 import wkv as wkv5
from mlc_rwkv_world.versions.rwkv7 import wkv as wkv7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
]

WIDTH = 4096
# A multiprocessor's registers and shared memory, the smallest of these architectures'.
REGISTERS, SHARED = 65536, 100 * 1024


def _kernels(target: Any) -> dict[str, tirx.PrimFunc]:
    row, long, vector = ((1, WIDTH), "float16"), ((1, 4 * WIDTH), "float16"), ((WIDTH,), "float32")
    state = [((tirx.Var("slots", "int64"), 32, 5, WIDTH), "float32"), ((1, 2), "int32")]
    batch = tirx.Var("batch", "int64")
    many = ((tirx.Var("rows", "int64"), WIDTH), "float16")

    def weight(outer: int, inner: int, stored: Stored) -> list[Any]:
        tensors = [(tensor.shape, tensor.dtype) for tensor in stored.tensors(outer, inner)]
        return tensors if stored.bits else tensors * 2

    def sig(args: list[Any], outs: list[Any], *stored: Stored) -> Signature:
        taken, given = ([TensorType(*one) for one in some] for some in (args, outs))
        return Signature(taken, given, target, stored)

    moving = ((tirx.Var("tokens", "int64"), WIDTH), "float32")
    several = [((tirx.Var("slots", "int64"), 32, 66, WIDTH), "float32"), ((batch, 2), "int32")]
    ends = ((batch + 1,), "int32")
    tokens: dict[str, tuple[Any, list[Any]]] = {
        "5": (wkv5.wkv_pooled, [moving, vector, moving, moving, vector]),
        "6": (wkv5.wkv_pooled, [*[moving] * 4, vector]),
        "7": (wkv7.wkv_pooled, [moving] * 6),
    }
    recurrences = {
        f"wkv_{version}{'_step' * step}": build(
            sig([*given, *([] if step else [ends]), *several], [moving]), size=64
        )
        for version, (build, given) in tokens.items()
        for step in (False, True)
    }
    kernels = recurrences | {
        "norm_mix": norm_mix(
            sig([row, *[vector] * 8, *state], [row] * 6), eps=1e-5, of_previous=True
        )
    }
    for stored in (Stored(0, "float16"), Stored.symmetric(4, "float16", group=32)):
        bits = stored.bits
        square, value = weight(WIDTH, WIDTH, stored), weight(WIDTH, 4 * WIDTH, stored)
        key = weight(4 * WIDTH, WIDTH, stored)
        gated = [long, *value, row, *square, row]
        mixed = [row, row, row, *square * 3, vector, vector, *state]
        kernels |= {
            f"output_{bits}": matvec_cuda.matvec_add(sig([row, *square, row], [row], stored)),
            f"key_{bits}": matvec_cuda.matvec_relu_square(sig([row, *key], [long], stored)),
            f"value_{bits}": matvec_cuda.matvec_gated_add(
                sig(gated, [row], stored, stored), factor=1.0
            ),
            f"mix_{bits}": time_mix_step(sig(mixed, [row], *[stored] * 3)),
            f"rows_{bits}": matmul_cuda.matmul(
                sig([many, *(square if bits else square[:1])], [many], stored)
            ),
        }
    return kernels


def _source(target: Any) -> str:
    with quick_parsing():
        functions = {
            name: finished(func).with_attr("global_symbol", name)
            for name, func in _kernels(target).items()
        }
    # Whether TVM compiles its source depends on what this process has loaded before.
    with compiling(target):
        module = tvm.tirx.build(IRModule(functions), target=target)
    waiting = [getattr(module, "mod", module)]
    while waiting:
        current = waiting.pop()
        if str(current.kind) == "cuda":
            return str(current.inspect_source())
        waiting += list(current.imports)
    raise AssertionError("no CUDA module")


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_nothing_spills_and_blocks_fit(arch: str) -> None:
    found = resources(_source(resolve(f"cuda -arch={arch}").target), arch)
    # Six kernels a storage, of which the last is three tiles', the normalization, and recurrences.
    assert len(found) == 1 + 2 * (4 + len(matmul_cuda.TILES)) + 2 * 3
    for one in found:
        assert (one.stack, one.spilled) == (0, 0), one
        blocks = min(REGISTERS // (one.registers * one.threads), SHARED // max(one.shared, 1))
        # Enough for the copies of one block to hide behind another's work.
        assert blocks >= 2 or one.kernel.startswith("norm_mix"), one


def test_what_nvcc_refuses_is_said() -> None:
    with pytest.raises(TargetError, match="nvcc refused kernels for sm_90"):
        resources("this is no source", "sm_90")
