"""The hot CUDA kernels at the size of the 7B model, assembled by nvcc for each architecture."""

from __future__ import annotations

import shutil
from functools import partial
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
from mlc_rwkv_world.kernels.cuda.head_end import head_end
from mlc_rwkv_world.kernels.cuda.norm_mix import norm_mix
from mlc_rwkv_world.kernels.cuda.several_rows import several_rows
from mlc_rwkv_world.kernels.finished import finished
from mlc_rwkv_world.kernels.signature import Signature, TensorType
from mlc_rwkv_world.storage import Stored
from mlc_rwkv_world.tvm_script import quick_parsing
from mlc_rwkv_world.versions.rwkv4.cuda.time_mix import time_mix_step
from mlc_rwkv_world.versions.rwkv5 import wkv as wkv5
from mlc_rwkv_world.versions.rwkv5.cuda.step import step as step6
from mlc_rwkv_world.versions.rwkv7 import wkv as wkv7
from mlc_rwkv_world.versions.rwkv7.cuda import gates
from mlc_rwkv_world.versions.rwkv7.cuda.step import step as step7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
]

WIDTH = 4096
RANKS = (128, 128, 480, 96)
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
    matrix = ((WIDTH // 64, 64), "float32")
    rows = ((tirx.Var("batch", "int64"), WIDTH), "float16")
    token = ((1, WIDTH), "float32")
    mixes = partial(norm_mix, eps=1e-5, of_previous=True)
    finish = partial(head_end, size=64, eps=1e-5, bonus=True, gate=True, silu=False)
    kernels = {
        f"wkv_{version}": build(sig([*given, ends, *several], [moving]), size=64)
        for version, (build, given) in tokens.items()
    } | {
        "norm_mix": mixes(sig([rows, *[vector] * 8, *several], [rows] * 6)),
        "norm_mix_prompt": mixes(sig([many, *[vector] * 8, ends, *several], [many] * 6)),
        "step_6": step6(
            sig([*[moving] * 4, *[vector] * 3, moving, *several], [rows]),
            64,
            1e-5,
            gate=True,
        ),
        "step_7": step7(
            sig([*[moving] * 6, matrix, vector, vector, moving, *several], [rows]), 64, 1e-5
        ),
        "end_7": finish(sig([*[moving] * 4, matrix, vector, vector, moving], [many])),
        "gates": gates.gates(sig([*[moving] * 7, *[vector] * 5], [moving] * 6), 64, shared=True),
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
        # RWKV-7 of 7.2B: three large products and four small ones, which have 8 bits for 4.
        low = Stored.symmetric(8, "float16", group=32) if bits else stored
        stacked = [*square * 3, *(t for rank in RANKS for t in weight(rank, WIDTH, low))]
        lies = [*[stored] * 3, *[low] * 4]
        acts = ("", "", "", "tanh", "", "sigmoid", "")
        hidden = [((1, rank), "float16") for rank in RANKS]
        second = [t for rank in RANKS for t in weight(WIDTH, rank, low)]
        outs = [*[moving] * 3, *(((many[0][0], rank), "float16") for rank in RANKS)]
        kernels |= {
            f"stacked_{bits}": several_rows(
                sig([row] * 7 + stacked, [*[token] * 3, *hidden], *lies), acts
            ),
            f"stacked_rows_{bits}": matmul_cuda.several(
                sig([many] * 7 + stacked, outs, *lies), acts
            ),
            f"gates_{bits}": gates.gates_of_hidden(
                sig([*[token] * 3, *hidden, *second, *[vector] * 5], [token] * 6, *[low] * 4),
                64,
                shared=True,
            ),
        }
    return kernels


@pytest.fixture(scope="module")
def source() -> str:
    """The kernels as CUDA source, which is the same for each architecture."""
    target = resolve("cuda -arch=sm_90").target
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
def test_nothing_spills_and_blocks_fit(source: str, arch: str) -> None:
    found = resources(source, arch)
    # Eight kernels a storage, of which two are three tiles', and those that read no weights.
    assert len(found) == 2 * (6 + 2 * len(matmul_cuda.TILES)) + 9
    for one in found:
        assert (one.stack, one.spilled) == (0, 0), one
        blocks = min(REGISTERS // (one.registers * one.threads), SHARED // max(one.shared, 1))
        # Enough for the copies of one block to hide behind another's work.
        assert blocks >= 2 or one.kernel.startswith("norm_mix"), one


def test_what_nvcc_refuses_is_said() -> None:
    with pytest.raises(TargetError, match="nvcc refused kernels for sm_90"):
        resources("this is no source", "sm_90")
