"""Packed weights and fused blocks compute what the plain functions of the same module compute."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from support.modules import (
    CHANGES,
    LAYERS,
    applied,
    callee,
    calls,
    chosen,
    functions,
    small_config,
    small_module,
)
from tvm import IRModule, relax

from mlc_rwkv_world.compiler import arithmetic, library, metadata, pipeline
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.passes.choose_kernels import ChooseKernels
from mlc_rwkv_world.compiler.passes.pack_weights import PackWeights
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import TargetError, UsageError
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8
from mlc_rwkv_world.model.fields import initial_rows
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.storage import format_named
from mlc_rwkv_world.tvm_names import name_of
from mlc_rwkv_world.versions.rwkv4.model import FIELDS
from mlc_rwkv_world.versions.table import VERSIONS

FUSED = {
    "rwkv_world_decode": ["norm_mix", "time_mix", "residual"],
    "rwkv_world_batch_decode": ["norm_mix", "time_mix", "residual"],
    "rwkv_world_prefill": ["shift_mix", "products", "recurrence", "residual"],
}


def _names(quantization: str) -> list[str]:
    specs = parameters(small_config(), format_named(quantization))
    return [spec.name for spec in specs]


def _fused(
    quantization: str, dtype: str = "float32", arithmetic: str = FLOAT32, exact: Sequence[int] = ()
) -> IRModule:
    target = resolve("llvm").target
    pack = PackWeights(target, _names(quantization), dict.fromkeys(FUSED, arithmetic), exact)
    return chosen(applied(pack, small_module(quantization, dtype)), target)


def _called(mod: IRModule, function: str) -> list[str]:
    return [
        name_of(call.args[0]).rstrip("0123456789")
        for call in calls(functions(mod)[function])
        if callee(call).startswith("relax.call_tir")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("function", FUSED)
def test_a_block_becomes_few_kernels(function: str) -> None:
    mod = _fused("q4f16_1")
    assert relax.analysis.check_well_formed(mod)
    called = _called(mod, function)
    for name in FUSED[function]:
        assert called.count(name) >= LAYERS, name
    assert not {"token_shift", "state_get", "state_set", "wkv_whole", "wkv_step"} & set(called)
    # Six kernels for a step, nine for a prompt; embedding and head beside them.
    assert len(called) <= LAYERS * (6 if "decode" in function else 9) + 6


# What a block of the others consists of, but for its two mixes, and those of a prompt's.
GATED = {"residual": 1, "key_receptance": 1, "gated_residual": 1}
BLOCKS = {
    5: {"products": 1, "heads": 1, **GATED},
    6: {"hidden": 1, "mixes": 1, "products": 1, "heads": 1, **GATED},
    7: {"products": 1, "heads": 1, "residual": 2, "key": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("version", BLOCKS)
def test_a_block_of_the_others_becomes_few_kernels(version: int) -> None:
    """A prompt's begins with two norms of its own."""
    target, changes = resolve("llvm").target, CHANGES[version]
    names = [s.name for s in parameters(small_config(**changes), format_named("q4f16_1"))]
    pack = PackWeights(target, names, dict.fromkeys(FUSED, INT8))
    mod = applied(pack, small_module("q4f16_1", "float32", **changes))
    mod = chosen(mod, target, version)
    assert relax.analysis.check_well_formed(mod)
    shared = BLOCKS[version]
    steps, prompts = {"norm_mix": 2, **shared}, {"layer_norm": 2, "shift_mix": 2, **shared}
    for function in FUSED:
        # A product that skips zeros stands in for the one that reads all.
        called = Counter(name.removeprefix("sparse_") for name in _called(mod, function))
        expected = steps if "decode" in function else prompts
        # Beside them, the norms before the first block and behind the last.
        beside = Counter(layer_norm=2)
        wanted = Counter({name: LAYERS * count for name, count in expected.items()}) + beside
        assert {name: called[name] for name in wanted} == dict(wanted)
        # And the embedding, the last rows, the head and its input.
        assert called.total() <= wanted.total() + 4


# The kernels of a step that hold a block's products, which they read as their first argument.
PRODUCTS = ("time_mix", "residual", "key_receptance", "gated_residual")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "arithmetic", "rounded"),
    [("q4f16_1", INT8, "uint32"), ("q0f16", BFLOAT16, "uint16")],
)
@pytest.mark.parametrize("exact", [(), (0,), (1,), (0, 1)])
def test_chosen_blocks_multiply_float32(
    exact: tuple[int, ...], quantization: str, arithmetic: str, rounded: str
) -> None:
    """Whatever the others do; no other type in the function changes."""
    mod = _fused(quantization, arithmetic=arithmetic, exact=exact)
    assert relax.analysis.check_well_formed(mod)
    found: dict[str, list[str]] = {name: [] for name in PRODUCTS}
    for call in calls(functions(mod)["rwkv_world_decode"]):
        if callee(call).startswith("relax.call_tir"):
            name = name_of(call.args[0]).rstrip("0123456789")
            if name in PRODUCTS:
                found[name].append(str(call.args[1].fields[0].ty.dtype))
    expected = ["float32" if block in exact else rounded for block in range(LAYERS)]
    assert found == dict.fromkeys(PRODUCTS, expected)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUSED)
def test_arithmetic_without_fusion(function: str) -> None:
    """The passes agree on parts that have no kernels of their own."""
    target, version = resolve("llvm").target, VERSIONS[4]
    pack = PackWeights(target, _names("q8f16_1"), {function: INT8}, [1])
    shared = {name: rule for name, rule in version.all_rules("llvm").items() if "." not in name}
    mod = applied(pack, small_module("q8f16_1", "float32"))
    operations = {**version.all_operations(), **STOCK.operations}
    choose = ChooseKernels(target, version.all_parts(), operations, shared)
    mod = applied(choose, mod)
    for name in FUSED:
        called = _called(mod, name)
        # Seven products in each block, and the head.
        assert called.count("linear_packed") == 7 * LAYERS + 1
        assert called.count("quantize") == (7 * (LAYERS - 1) + 1 if name == function else 0)


def test_what_does_not_compute_in_float32_is_left_alone() -> None:
    mod = _fused("q0f16", "float16")
    called = _called(mod, "rwkv_world_decode")
    assert "wkv_step" in called
    assert not {"norm_mix", "time_mix"} & set(called)


def test_stock_functions_keep_their_parameters() -> None:
    before, after = small_module("q4f16_1", "float32"), _fused("q4f16_1")
    for name in ("prefill", "decode", "batch_prefill", "batch_decode"):
        tvm.ir.assert_structural_equal(
            functions(before)[name].params[-1].ty, functions(after)[name].params[-1].ty
        )


def _without(mod: IRModule, *names: str) -> IRModule:
    left = {gvar: func for gvar, func in mod.functions_items() if name_of(gvar) not in names}
    return IRModule(left, attrs=mod.attrs)


class _Module:
    """The small model's library and random parameters for its functions."""

    def __init__(self, folder: Path, quantization: str, how: str, target: str = "llvm") -> None:
        config, fmt, chosen = small_config(), format_named(quantization), resolve(target)
        described = metadata.describe(
            config,
            fmt,
            parameters(config, fmt),
            chosen,
            "float32",
            arithmetic.resolve(how, chosen, fmt, "float32"),
        )
        # Without what is not called here: an engine's functions, and stock's for batches.
        mod = pipeline.run(
            _without(small_module(quantization, "float32"), "batch_prefill", "batch_decode"),
            chosen.target,
            config,
            described,
            None,
            additions=dataclasses.replace(STOCK, passes=lambda target, config: ()),
        )
        path = folder / "library.so"
        library.write(mod, chosen, path)
        self.machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        described = json.loads(str(self.machine["_metadata"]()))
        rng = np.random.default_rng(0)
        self.stored: dict[str, Any] = {}
        for param in described["params"]:
            values = (rng.standard_normal(param["shape"]) / 8).astype(param["dtype"])
            if param["dtype"] == "uint32":
                # No field has the value that quantization never gives, all bits set.
                values = rng.integers(0, 2**32, param["shape"], np.uint32) & np.uint32(0xEEEEEEEE)
            self.stored[param["name"]] = tvm.runtime.tensor(values)
        self.packed = [
            self.machine[entry["pack"]](*(self.stored[name] for name in entry["from"]))
            if entry["pack"]
            else self.stored[entry["from"][0]]
            for entry in described["rwkv_world"]["packed_params"]
        ]

    def stock(self, lengths: list[int], ids: np.ndarray) -> np.ndarray:
        """Logits of sequences one by one through stock's functions, which have plain kernels."""
        params, found, begin = list(self.stored.values()), [], 0
        shape = tvm.runtime.ShapeTuple
        for length in lengths:
            state = self.machine["create_rnn_state"](shape([1]), shape([1]))
            tvm.get_global_func("vm.builtin.kv_state_add_sequence")(state, 0)
            for piece in (
                ids[begin : begin + length - 1],
                ids[begin + length - 1 : begin + length],
            ):
                tvm.get_global_func("vm.builtin.kv_state_begin_forward")(
                    state, shape([0]), shape([len(piece)])
                )
                x = self.machine["embed"](tvm.runtime.tensor(piece), params).numpy()[None]
                name = "decode" if len(piece) == 1 else "prefill"
                logits = self.machine[name](tvm.runtime.tensor(x), state, params)[0]
                tvm.get_global_func("vm.builtin.kv_state_end_forward")(state)
            found.append(logits.numpy().reshape(-1))
            begin += length
        return np.stack(found)

    def ours(self, lengths: list[int], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same in batches, by a prefill and a step; and by single steps for the first."""
        ends = np.cumsum([0, *lengths])
        heads = np.concatenate([ids[b : e - 1] for b, e in pairwise(ends)])
        offsets = np.cumsum([0, *(n - 1 for n in lengths)]).astype(np.int32)
        fresh = np.array(initial_rows(FIELDS), np.float32)[:, None]
        # Slot 0 stays fresh; the others are not read before they are written.
        content = np.full((16, LAYERS, 5, 64), np.nan, np.float32)
        content[0] = fresh
        tensor, machine = tvm.runtime.tensor, self.machine
        pool, count = tensor(content), len(lengths)

        def moving(reads: Any, writes: Any) -> Any:
            return tensor(np.stack([reads, writes], axis=1).astype(np.int32))

        first, second = np.arange(count) + 1, np.arange(count)[::-1] + 5
        slots = moving(np.zeros(count), first)
        machine["rwkv_world_prefill"](tensor(heads), tensor(offsets), slots, pool, self.packed)
        last, slots = tensor(np.ascontiguousarray(ids[ends[1:] - 1])), moving(first, second)
        logits = machine["rwkv_world_batch_decode"](last, slots, pool, self.packed)[0].numpy()
        at = [0, *(9 + number % 3 for number in range(lengths[0]))]
        for token, (read_from, write_to) in zip(ids[: lengths[0]], pairwise(at), strict=True):
            step, slots = tensor(np.array([token], np.int32)), moving([read_from], [write_to])
            single = machine["rwkv_world_decode"](step, slots, pool, self.packed)[0]
        np.testing.assert_array_equal(pool.numpy()[0], content[0])
        return logits, single.numpy()


# By arithmetic: of float32's rounding, and of inputs rounded to 8 bits.
@pytest.mark.slow
@pytest.mark.parametrize(
    "quantization, how, ratio, target",
    [
        ("q0f16", "auto", 1e-5, "llvm"),
        ("q4f16_1", "float32", 1e-5, "llvm"),
        ("q4f32_1", "int8", 0.05, "llvm"),
        ("q8f16_1", "int8", 0.05, "llvm"),
        ("q4f16_1", "auto", 1e-5, "llvm -mcpu=x86-64"),
        ("q4f16_1", "auto", 0.05, "llvm -mcpu=haswell"),
    ],
)
def test_fused_functions_equal_plain_ones(
    quantization: str, how: str, ratio: float, target: str, tmp_path: Path
) -> None:
    try:
        module = _Module(tmp_path, quantization, how, target)
    except TargetError as error:
        pytest.skip(str(error))
    lengths = [5, 2, 4]
    ids = np.random.default_rng(1).integers(0, 96, sum(lengths)).astype(np.int32)
    expected = module.stock(lengths, ids)
    together, single = module.ours(lengths, ids)
    scale = np.abs(expected).max()
    assert np.abs(together - expected).max() < ratio * scale
    assert np.abs(single[0] - expected[0]).max() < ratio * scale


@pytest.mark.parametrize("text", ["int4", "decode=bf16", "chat=int8", ""])
def test_unknown_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--arithmetic"):
        arithmetic.resolve(text, resolve("llvm"), format_named("q4f16_1"), "float32")


def test_arithmetic_is_chosen_by_use() -> None:
    fmt, target = format_named("q4f16_1"), resolve("llvm")
    chosen = arithmetic.resolve("prefill=float32,batch=float32", target, fmt, "float32")
    assert chosen["prefill"] == chosen["batch"] == "float32"
    assert chosen["decode"] == arithmetic.resolve("auto", target, fmt, "float32")["decode"]
    with pytest.raises(UsageError, match="no integers"):
        arithmetic.resolve("int8", target, format_named("q0f16"), "float32")
    with pytest.raises(UsageError, match="int8 or float32, or a format"):
        arithmetic.resolve("bfloat16", target, fmt, "float32")
    with pytest.raises(UsageError, match="all of them or none"):
        arithmetic.resolve("prefill=bfloat16", target, format_named("q0f16"), "float32")
    chosen = arithmetic.resolve("bfloat16", target, format_named("q0f16"), "float32")
    assert set(chosen.values()) == {BFLOAT16}
    with pytest.raises(TargetError, match="AVX2"):
        arithmetic.resolve("int8", resolve("llvm -mcpu=x86-64"), fmt, "float32")
