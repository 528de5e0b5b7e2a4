"""Which parts have no kernels of their own: by format, target and function, all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from support.modules import CHANGES, LAYERS, applied, chosen, small_config, small_module

from mlc_rwkv_world.compiler.arithmetic import by_function
from mlc_rwkv_world.compiler.arithmetic import resolve as resolve_arithmetic
from mlc_rwkv_world.compiler.export import compute_dtype, parameters
from mlc_rwkv_world.compiler.passes.choose_kernels import DECOMPOSED
from mlc_rwkv_world.compiler.passes.pack_weights import PackWeights
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.storage import FORMATS, format_named

OURS = ("rwkv_world_batch_decode", "rwkv_world_decode", "rwkv_world_prefill")
STOCK = ("batch_decode", "batch_prefill", "decode", "prefill")
CUDA = "cuda -arch=sm_90"
# Two blocks whose rows are whole pieces of what CUDA's kernels copy at a time.
WIDE = {"hidden_size": 1024, "intermediate_size": 4096}

# A branch of a block consists of smaller parts; the others of operators.
BRANCHES = {"rwkv4.channel_mix": LAYERS, "rwkv4.time_mix": LAYERS}
PRODUCTS = {
    "residual_product": LAYERS,
    "rwkv4.gated_residual": LAYERS,
    "squared_relu_product": LAYERS,
}
ENDED = ("residual_product", "squared_relu_product")
WKV, MIX = {"rwkv4.wkv": LAYERS}, {"norm_mix": 2 * LAYERS}
EVERYTHING = {**BRANCHES, **PRODUCTS, **WKV, **MIX}
# Where RWKV-7's branches have no kernels of their own, they consist of products, the recurrence and
# norms of heads, which have kernels everywhere.
BLOCKS_OF_7 = {"rwkv7.channel_mix": LAYERS, "rwkv7.time_mix": LAYERS, "rwkv7.wkv": LAYERS, **MIX}
BRANCHES_OF_7 = {"rwkv7.channel_mix": LAYERS, "rwkv7.time_mix": LAYERS}
PRODUCTS_OF_7 = {"residual_product": 2 * LAYERS, "squared_relu_product": LAYERS}

# The recurrence of RWKV-5 and 6 and their norms of heads have kernels everywhere.
TIME_MIX_OF_5 = {"rwkv5.time_mix": LAYERS, "rwkv5.wkv": LAYERS, "residual_product": LAYERS}
TIME_MIX_OF_6 = {"rwkv6.time_mix": LAYERS, "rwkv5.wkv": LAYERS, "residual_product": LAYERS}


def _decomposed(
    quantization: str, target_text: str, version: int = 4
) -> Mapping[str, Mapping[str, int]]:
    fmt, target = format_named(quantization), resolve(target_text)
    dtype = compute_dtype(fmt, target.kind)
    changes = {**CHANGES[version], **WIDE}
    mod = small_module(quantization, dtype, **changes)
    if target.kind == "llvm":
        names = [spec.name for spec in parameters(small_config(**changes), fmt)]
        arithmetic = by_function(resolve_arithmetic("auto", target, fmt, dtype))
        mod = applied(PackWeights(target.target, names, arithmetic), mod)
    mod = chosen(mod, target.target, version)
    found: dict[str, dict[str, int]] = json.loads(str(mod.attrs[DECOMPOSED]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("target", ["llvm", "llvm -mcpu=x86-64", "metal", "opencl", CUDA])
def test_rwkv7(quantization: str, target: str) -> None:
    everything = {**BLOCKS_OF_7, **PRODUCTS_OF_7}
    # On a CPU ours have kernels for whole branches, as RWKV-4's have.
    functions = STOCK if target.startswith("llvm") else (*OURS, *STOCK)
    expected = dict.fromkeys(functions, everything)
    if target == CUDA:
        # Ours have kernels for all that a branch consists of, and stock's for its products.
        expected |= dict.fromkeys(OURS, BRANCHES_OF_7)
        expected |= dict.fromkeys(STOCK, BLOCKS_OF_7)
    assert _decomposed(quantization, target, 7) == expected


@pytest.mark.slow
@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("target", ["llvm", "llvm -mcpu=x86-64", "metal", "opencl", CUDA])
def test_rwkv5_and_6(quantization: str, target: str, version: int) -> None:
    """The channel mix is RWKV-4's, with its kernels."""
    time_mix = TIME_MIX_OF_5 if version == 5 else TIME_MIX_OF_6
    mixes = 2 * LAYERS if version == 5 else LAYERS
    everything = {**time_mix, **PRODUCTS, "rwkv4.channel_mix": LAYERS, "norm_mix": mixes}
    expected = dict.fromkeys((*OURS, *STOCK), everything)
    if target == CUDA:
        # Whoever calls has products that do the rest themselves, the gated one's of one row; ours
        # have kernels for all that follows 5's blends, and for blends but those of 6's time mix.
        several = {n: count for n, count in everything.items() if n not in ENDED}
        branches = {n: count for n, count in several.items() if n not in PRODUCTS}
        expected |= dict.fromkeys(STOCK, several) | {"decode": branches}
        mixed = ("norm_mix", "rwkv5.wkv")
        ours, one = (
            {n: count for n, count in some.items() if n not in mixed}
            for some in (several, branches)
        )
        expected |= dict.fromkeys(OURS, ours) | {"rwkv_world_decode": one}
    elif target.startswith("llvm"):
        # Ours have kernels for whole branches.
        expected = dict.fromkeys(STOCK, everything)
    assert _decomposed(quantization, target, version) == expected


@pytest.mark.slow
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("target", ["llvm", "llvm -mcpu=x86-64"])
def test_on_a_cpu(quantization: str, target: str) -> None:
    # Ours have kernels for whole branches; stock's have none but for products.
    assert _decomposed(quantization, target) == dict.fromkeys(STOCK, EVERYTHING)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", FORMATS)
def test_on_cuda(quantization: str) -> None:
    found = _decomposed(quantization, CUDA)
    assert found["rwkv_world_decode"] == BRANCHES
    assert found["decode"] == {**BRANCHES, **WKV, **MIX}
    # Of several rows, tensor cores take float16 ones, and what follows their products.
    ended = ENDED if format_named(quantization).dtype == "float16" else ()
    several = {name: count for name, count in EVERYTHING.items() if name not in ended}
    for name in ("batch_decode", "batch_prefill", "prefill"):
        assert found[name] == several, name
    for name in ("rwkv_world_batch_decode", "rwkv_world_prefill"):
        assert {**found[name], **MIX} == several, name


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1"])
@pytest.mark.parametrize("target", ["metal", "opencl", "cuda -arch=sm_75"])
def test_on_other_gpus(quantization: str, target: str) -> None:
    assert _decomposed(quantization, target) == dict.fromkeys((*OURS, *STOCK), EVERYTHING)
