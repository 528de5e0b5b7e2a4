"""What an exported model consists of, before any pass has run."""

from __future__ import annotations

from collections import Counter

import pytest
import tvm
from support.modules import (
    CHANGES,
    LAYERS,
    RWKV7,
    applied,
    callee,
    callees,
    calls,
    chosen,
    functions,
    small_config,
    small_module,
)
from tvm import IRModule, relax

from mlc_rwkv_world.artifact.abi import OFFSETS, POOL, SLOTS
from mlc_rwkv_world.compiler.export import parameters
from mlc_rwkv_world.compiler.passes.fp32_layers import FP32Layers
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.model.parts import PREFIX, ROWS, read
from mlc_rwkv_world.storage import FORMATS, format_named
from mlc_rwkv_world.tvm_names import name_of

OURS = {"rwkv_world_prefill", "rwkv_world_decode", "rwkv_world_batch_decode"}
STEPS = {"decode", "batch_decode", "rwkv_world_decode", "rwkv_world_batch_decode"}
RAGGED = {"prefill", "batch_prefill", "rwkv_world_prefill"}
STATE_FIELDS = 3


@pytest.fixture(scope="module", params=[("q4f16_1", "float16"), ("q0f16", "float32")], ids="-".join)
def dtype(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A format, and a type to compute in."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def mod(dtype: tuple[str, str]) -> IRModule:
    return small_module(*dtype)


def test_functions_and_well_formedness(mod: IRModule) -> None:
    assert relax.analysis.check_well_formed(mod)
    assert set(functions(mod)) == STEPS | RAGGED | {"embed", "create_rnn_state"}


def test_named_operations(mod: IRModule, dtype: tuple[str, str]) -> None:
    for name, func in functions(mod).items():
        expected = Counter[str]()
        if name in OURS | {"embed"}:
            expected["embedding"] = 1
        if name in STEPS | RAGGED:
            expected["rwkv4.time_mix"] = expected["rwkv4.channel_mix"] = LAYERS
            expected["linear"] = 1
        if name in RAGGED:
            expected["last_token"] = 1
        if name == "prefill":
            expected["whole_offsets"] = 1
        if name == "batch_prefill":
            expected["offsets_from_positions"] = 1
        found = callees(func)
        named = {
            key.removeprefix(PREFIX): count
            for key, count in found.items()
            if key.startswith(PREFIX)
        }
        assert named == +expected, name
        if name in STEPS | RAGGED:
            stock = 0 if name in OURS else STATE_FIELDS * LAYERS
            assert found["vm.builtin.rnn_state_get"] == stock
            assert found["vm.builtin.rnn_state_set"] == stock
            # All that blocks compute is in parts.
            assert found["relax.matmul"] == found["relax.add"] == 0


@pytest.mark.parametrize("function", sorted(STEPS | RAGGED))
def test_parts_say_what_they_are(mod: IRModule, dtype: tuple[str, str], function: str) -> None:
    found = [part for call in calls(functions(mod)[function]) if (part := read(call)) is not None]
    assert [part.block for part in found] == [*(b for i in range(LAYERS) for b in (i, i)), None]
    quantized = dtype[0] == "q4f16_1"
    for part in found:
        assert part.compute == dtype[1]
        tensors = [part.args[role] for role in part.weights]
        assert [len(one) for one in tensors] == [2 if quantized else 1] * len(tensors)
        if part.block is None:
            continue
        ours = function in OURS
        assert (POOL in part, SLOTS in part, ROWS in part) == (ours, ours, not ours)
        assert (OFFSETS in part) == (function in RAGGED)
        assert part.attrs["layer"] == part.block
        assert str(part.outs[0].dtype) == dtype[1]
        # The pool, or each row, comes back.
        rows = len(part.attrs["rows"])
        assert len(part.outs) == 1 + (1 if ours else rows)
        again = read(part.call())
        assert again is not None
        tvm.ir.assert_structural_equal(again.call(), part.call())
    # The first row of each field: the rows before, and what the recurrence keeps in between.
    assert sorted(row for part in found[:2] for row in part.attrs["rows"]) == [0, 1, 4]


def test_rwkv7_hands_block_0s_value_to_the_others() -> None:
    """Between blocks, beside the residual, in float32; the heads' matrices are one field."""
    mod = small_module("q4f16_1", "float16", **RWKV7)
    for name, func in functions(mod).items():
        if name not in STEPS | RAGGED:
            continue
        parts = [part for call in calls(func) if (part := read(call)) is not None]
        mixes = [part for part in parts if part.name == "rwkv7.time_mix"]
        assert [part.block for part in mixes] == list(range(LAYERS))
        for part in mixes:
            assert ("value_first" in part) == bool(part.block)
            assert (part.attrs["rows"], part.attrs["heights"]) == ([0, 1], [1, 64])
            types = [str(ty.dtype) for ty in part.outs]
            states = 1 if name in OURS else 2
            made = [] if part.block else ["float32"]
            assert types == ["float16", *made, *["float32"] * states]
            held = {role: stored.bits for role, stored in part.weights.items()}
            factors = {f"{x}{n}" for x in ("wavg" if part.block else "wag") for n in (1, 2)}
            assert {role for role, bits in held.items() if bits == 8} == factors
            assert {role for role, bits in held.items() if bits == 4} == {
                *("receptance", "key", "value", "output")
            }
        found = callees(func)
        stock = 0 if name in OURS else 3 * LAYERS
        assert found["vm.builtin.rnn_state_get"] == found["vm.builtin.rnn_state_set"] == stock


def _products(func: relax.Function) -> list[tuple[relax.Expr, relax.Var]]:
    """Input and result of each product, in order."""
    return [
        (binding.value.args[1].fields[0], binding.var)
        for binding in func.body.blocks[0].bindings
        if isinstance(binding.value, relax.Call)
        and callee(binding.value) == "relax.call_tir"
        and name_of(binding.value.args[0]).startswith("linear")
    ]


# Of block 1.
@pytest.mark.parametrize("version, count", [(4, 7), (5, 8), (6, 16), (7, 14)])
def test_no_product_of_a_block_in_float32_is_rounded(version: int, count: int) -> None:
    """Not those either that round in the other blocks because the configuration asks for it."""
    mod = small_module("q0f16", "float16", stock=False, float32_keys=False, **CHANGES[version])
    mod = chosen(applied(FP32Layers((1,)), mod), resolve("metal").target, version)
    for name in OURS:
        products = _products(functions(mod)[name])
        *before, head = [str(out.ty.dtype) for _, out in products]
        assert head == "float32"
        assert set(before[-count:]) == {"float32"}, name
        # RWKV-6 first makes its mixes, from products that give float32.
        first = 8 if version == 6 else 0
        assert before[first : first + 3] == ["float16"] * 3


def test_products_that_leave_float16s_range_are_float32() -> None:
    mod = chosen(small_module("q4f16_1", "float16"), resolve("metal").target)
    for name in STEPS | RAGGED:
        products = _products(functions(mod)[name])
        results = [str(out.ty.dtype) for _, out in products]
        # Key, value, receptance, output; receptance, key, value; and at the end the head.
        block = ["float32", "float32", "float16", "float16", "float16", "float16", "float16"]
        assert results == [*block * LAYERS, "float32"], name
        assert {str(x.ty.dtype) for x, _ in products} == {"float16"}


def test_everything_is_float32_where_that_is_the_compute_type() -> None:
    for func in functions(small_module("q0f32", "float32")).values():
        for call in calls(func):
            if isinstance(call.ty, relax.TensorType):
                assert str(call.ty.dtype) in ("float32", "int32")


@pytest.mark.parametrize("every, halvings", [(0, 0), (1, 2), (2, 1), (3, 0)])
def test_residual_is_halved_after_every_nth_block(every: int, halvings: int) -> None:
    mod = small_module("q0f16", "float16", rescale_every=every)
    for name in STEPS | RAGGED:
        parts = [read(call) for call in calls(functions(mod)[name])]
        factors = [part.attrs["factor"] for part in parts if part and "factor" in part.attrs]
        assert factors.count(0.5) == halvings
        assert factors.count(1.0) == LAYERS - halvings


def test_parameters_are_those_of_the_functions(mod: IRModule, dtype: tuple[str, str]) -> None:
    specs = parameters(small_config(), format_named(dtype[0]))
    for name in STEPS | RAGGED | {"embed"}:
        fields = functions(mod)[name].params[-1].ty.fields
        found = [(tuple(map(int, field.shape.values)), str(field.dtype)) for field in fields]
        assert found == [(spec.shape, spec.dtype) for spec in specs]
    assert len({spec.name for spec in specs}) == len(specs)


@pytest.mark.parametrize("name", FORMATS)
def test_what_each_format_stores(name: str) -> None:
    fmt, stored = FORMATS[name], FORMATS[name].matrix
    specs = {spec.name: spec for spec in parameters(small_config(), fmt)}
    assert specs["model.blocks.1.attention.time_decay"].dtype == "float32"
    assert specs["model.ln_out.weight"].dtype == "float32"
    assert specs["model.ln_out.weight"].stored is None
    assert {spec.stored for spec in specs.values() if "head." in spec.name} == {stored}
    if stored.bits == 0:
        assert specs["head.weight"].dtype == fmt.dtype
        assert specs["model.embeddings.weight"].shape == (96, 64)
        return
    for matrix, rows, inner in (
        ("head", 96, 64),
        ("model.embeddings", 96, 64),
        ("model.blocks.0.feed_forward.value", 64, 256),
    ):
        words, scales = specs[f"{matrix}.q_weight"], specs[f"{matrix}.q_scale"]
        assert (words.shape, words.dtype) == ((rows, inner * stored.bits // 32), "uint32")
        assert (scales.shape, scales.dtype) == ((rows, inner // 32), fmt.dtype)


def test_rows_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(UsageError, match=r"q4f16_1 stores .* groups of 32; rows of 48 do not"):
        parameters(small_config(hidden_size=48, intermediate_size=192), format_named("q4f16_1"))
    assert parameters(small_config(hidden_size=48, intermediate_size=192), format_named("q0f16"))
