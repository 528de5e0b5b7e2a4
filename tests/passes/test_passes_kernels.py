"""Choosing kernels: nothing is left to choose, and weights are read as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from support.modules import LAYERS, RWKV7, callee, callees, calls, functions, small_module
from support.modules import chosen as with_kernels
from tvm import IRModule, relax, tirx

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.parts import PREFIX
from mlc_rwkv_world.tvm_names import name_of

PRODUCTS = 7 * LAYERS + 1


CUDA = "cuda -arch=sm_90"


@cache
def chosen(quantization: str, dtype: str, target: str) -> IRModule:
    """The small model with its kernels, for one format, compute type and target."""
    return with_kernels(small_module(quantization, dtype), resolve(target).target)


def kernel_calls(mod: IRModule, function: str) -> Iterator[tuple[str, tirx.PrimFunc]]:
    """The kernels that a function calls, by name, in order."""
    for call in calls(functions(mod)[function]):
        if callee(call).startswith("relax.call_tir"):
            yield name_of(call.args[0]), mod[call.args[0]]


def kernels_of(function: str) -> bool:
    """Whether a function holds blocks."""
    return function not in ("embed", "create_rnn_state")


def argument_types(func: tirx.PrimFunc) -> list[str]:
    """The dtypes of a kernel's tensors."""
    return [str(p.dtype) for p in func.params if hasattr(p.ty, "shape")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantization, dtype, target",
    [
        ("q4f16_1", "float32", "llvm"),
        ("q4f16_1", "float16", "metal"),
        ("q0f32", "float32", "llvm"),
        ("q0f32", "float32", "metal"),
    ],
)
def test_nothing_is_left_to_choose(quantization: str, dtype: str, target: str) -> None:
    mod = chosen(quantization, dtype, target)
    assert relax.analysis.check_well_formed(mod)
    for name, func in functions(mod).items():
        left = callees(func)
        assert not [key for key in left if key.startswith(PREFIX)], name
        assert left["relax.matmul"] == left["relax.permute_dims"] == 0
        if kernels_of(name):
            kernels = [kernel for kernel, _ in kernel_calls(mod, name)]
            products = [kernel for kernel in kernels if kernel.startswith("linear")]
            assert len(products) == PRODUCTS, name
        # A GPU's normalizations are left to dlight.
        norms = (name == "embed" or name.startswith("rwkv_world")) + (
            2 * LAYERS + 1 if kernels_of(name) else 0
        )
        assert left["relax.nn.layer_norm"] == (0 if target == "llvm" else norms), name


def test_casts_of_weights_become_part_of_the_product() -> None:
    mod = chosen("q0f16", "float32", "llvm")
    for name in ("rwkv_world_decode", "rwkv_world_prefill"):
        # Float32 from end to end, but for the weights, which no operation converts.
        assert callees(functions(mod)[name])["relax.astype"] == 0
        for kernel, func in kernel_calls(mod, name):
            if kernel.startswith("linear"):
                assert argument_types(func) == ["float32", "float16", "float32"]


@pytest.mark.slow
def test_dequantizing_becomes_part_of_the_product() -> None:
    mod = chosen("q4f16_1", "float16", CUDA)
    results = []
    for kernel, func in kernel_calls(mod, "rwkv_world_prefill"):
        if kernel.startswith(("linear", "matmul")):
            *args, result = argument_types(func)
            residual = ["float16"] if kernel.startswith("matmul_add") else []
            assert args == ["float16", "uint32", "float16", *residual]
            results.append(result)
    block = ["float32", "float32", "float16", "float16", "float16", "float16", "float16"]
    assert results == [*block * LAYERS, "float32"]


def test_calls_of_the_same_types_share_a_kernel() -> None:
    mod = chosen("q4f16_1", "float32", "llvm")
    decode = [kernel for kernel, _ in kernel_calls(mod, "rwkv_world_decode")]
    # 64 x 64, 256 x 64, 64 x 256 and the head.
    assert len({kernel for kernel in decode if kernel.startswith("linear")}) == 4
    # To and from fields of one row and of three.
    assert len({kernel for kernel in decode if kernel.startswith("state_")}) == 4
    # The same operations on one row of one sequence under both sets of names.
    stock = {kernel for kernel, _ in kernel_calls(mod, "decode")}
    assert {k for k in stock if k.startswith(("linear", "layer_norm"))} <= set(decode)


def test_the_state_is_written_in_place() -> None:
    mod = chosen("q0f32", "float32", "llvm")
    for name in ("rwkv_world_decode", "rwkv_world_prefill", "rwkv_world_batch_decode"):
        assert callees(functions(mod)[name])["relax.call_tir_inplace"] == 3 * LAYERS


# Ours, in the order of a step of one sequence, one of several, and a prompt.
STEPS = ("rwkv_world_decode", "rwkv_world_batch_decode", "rwkv_world_prefill")


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
def test_launches_of_a_block_of_rwkv7(quantization: str) -> None:
    """On CUDA: two blends, stacked products, gates, recurrence with its end, three products.

    For several rows the second factors are products of their own, and so is a prompt's end.
    """
    sizes = {**RWKV7, "hidden_size": 1024, "intermediate_size": 4096}
    counts = []
    for layers in (LAYERS, LAYERS + 1):
        mod = small_module(
            quantization, "float16", stock=False, **{**sizes, "num_hidden_layers": layers}
        )
        mod = with_kernels(mod, resolve(CUDA).target, 7)
        counts.append([len(list(kernel_calls(mod, function))) for function in STEPS])
    assert [more - fewer for fewer, more in zip(*counts, strict=True)] == [8, 9, 10]
