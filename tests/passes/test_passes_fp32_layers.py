"""FP32Layers changes the types of the chosen blocks' parts and of nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import tvm
from support.modules import applied, callee, chosen, functions, small_module
from tvm import IRModule, relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.compiler.passes.choose_kernels import ChooseKernels
from mlc_rwkv_world.compiler.passes.fp32_layers import FP32Layers
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.model.parts import Part, make, read

LAYERS = 3
FORMATS = ["q0f16", "q4f16_1"]
FORWARD = 7


@dataclasses.dataclass(frozen=True)
class Operation:
    """A call, its block (None outside), what it computes in, and the types of what it touches."""

    block: int | None
    name: str
    compute: str | None
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def module(quantization: str) -> IRModule:
    return small_module(quantization, "float16", num_hidden_layers=LAYERS, rescale_every=2)


@cache
def widened(quantization: str, *blocks: int) -> IRModule:
    return applied(FP32Layers(blocks), module(quantization))


def dtypes(ty: object) -> tuple[str, ...]:
    if isinstance(ty, relax.TupleType):
        return tuple(dtype for field in ty.fields for dtype in dtypes(field))
    return (str(ty.dtype),) if isinstance(ty, relax.TensorType) else ()


def operations(func: relax.Function) -> Iterator[Operation]:
    """The operations of a function in order; `takes` of a part are no weights."""
    for binding in func.body.blocks[0].bindings:
        call = binding.value
        if not isinstance(call, relax.Call):
            continue
        part = read(call)
        if part is None:
            takes = tuple(dtype for arg in call.args for dtype in dtypes(arg.ty))
            yield Operation(None, callee(call), None, takes, dtypes(call.ty))
        else:
            roles = [role for role in part.args if role not in part.weights]
            takes = tuple(str(expr.ty.dtype) for role in roles for expr in part.args[role])
            yield Operation(part.block, part.name, part.compute, takes, dtypes(call.ty))


def forward(mod: IRModule) -> dict[str, list[Operation]]:
    """The operations of every function that holds blocks."""
    found = {name: list(operations(func)) for name, func in functions(mod).items()}
    return {name: ops for name, ops in found.items() if any(o.block is not None for o in ops)}


def without_casts(found: Sequence[Operation]) -> list[Operation]:
    return [o for o in found if o.name != "relax.astype"]


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("blocks", [(0,), (1, 2), (0, 2), (0, 1, 2)])
def test_types(quantization: str, blocks: tuple[int, ...]) -> None:
    before, after = module(quantization), widened(quantization, *blocks)
    assert relax.analysis.check_well_formed(after)
    assert len(forward(after)) == FORWARD
    for name, found in forward(after).items():
        for o in found:
            if o.block in blocks:
                assert "float16" not in o.gives, (name, o)
                assert "float16" not in o.takes, (name, o)
                assert o.compute == "float32"
        old = without_casts(forward(before)[name])
        new = without_casts(found)
        assert [(o.block, o.name) for o in new] == [(o.block, o.name) for o in old]
        for was, now in zip(old, new, strict=True):
            if was.block not in blocks or was.block is None:
                assert now == was
            else:
                assert now.gives == tuple(d.replace("float16", "float32") for d in was.gives)


# Behind the last block its float32 value replaces the cast that stood there.
@pytest.mark.parametrize("blocks, more", [((0,), 2), ((1, 2), 0), ((0, 2), 2), ((0, 1, 2), 0)])
def test_casts_outside(blocks: tuple[int, ...], more: int) -> None:
    """Only at the edges: into a chosen block, and out of one where float16 is wanted."""
    for name, old in forward(module("q4f16_1")).items():
        found = forward(widened("q4f16_1", *blocks))[name]
        before, after = (sum(o.name == "relax.astype" for o in side) for side in (old, found))
        assert after == before + more, name


def parts(func: relax.Function) -> list[tuple[Part, relax.Var]]:
    """The parts of blocks, and what they are bound to."""
    bindings = func.body.blocks[0].bindings
    found = [(read(binding.value), binding.var) for binding in bindings]
    return [(part, var) for part, var in found if part is not None and part.block is not None]


def test_residual_between_chosen_blocks_stays_float32() -> None:
    mod = widened("q0f16", 1, 2)
    for func in functions(mod).values():
        values = {binding.var: binding.value for binding in func.body.blocks[0].bindings}
        last = {part.block: var for part, var in parts(func)}
        for part, _ in parts(func):
            if part.block == 2 and part.name.endswith("time_mix"):
                item = values[part.args["x"][0]]
                assert item.tuple_value.same_as(last[1]) and item.index == 0


@pytest.mark.parametrize("quantization", FORMATS)
def test_no_block_changes_nothing(quantization: str) -> None:
    mod = module(quantization)
    tvm.ir.assert_structural_equal(applied(FP32Layers(()), mod), mod)


def test_float32_model_keeps_its_operations() -> None:
    mod = small_module("q4f32_1", "float32")
    assert forward(applied(FP32Layers([0, 1]), mod)) == forward(mod)


def test_functions_signatures_stay() -> None:
    before, after = module("q4f16_1"), widened("q4f16_1", 0, 1, 2)
    for name, func in functions(before).items():
        changed = functions(after)[name]
        tvm.ir.assert_structural_equal(changed.ret_ty, func.ret_ty)
        for old, new in zip(func.params, changed.params, strict=True):
            tvm.ir.assert_structural_equal(new.ty, old.ty, map_free_vars=True)


def test_unknown_block() -> None:
    with pytest.raises(ValueError, match="no block 3"):
        applied(FP32Layers([0, 3]), module("q0f16"))


class Strange(nn.Module):  # type: ignore[misc]
    """A model that is no RWKV: two blocks of one part each, with a cast between."""

    def forward(self, x: Tensor) -> Tensor:
        for block in range(2):
            part = make("strange", {"x": x}, [(x.shape, "float16")], block=block, compute="float16")
            (x,) = part.emit()
        return op.tanh(x)


def _strange(part: Part) -> list[Tensor]:
    x = part.tensor("x")
    return [op.softmax(x * 0.25, -1) + x]


def test_any_model_in_parts() -> None:
    spec = {"forward": {"x": nn.spec.Tensor(["n", 8], "float16")}}
    mod, _ = Strange().export_tvm(spec)
    changed = applied(FP32Layers([1]), mod)
    assert relax.analysis.check_well_formed(changed)
    (found,) = forward(changed).values()
    assert [o.gives for o in found if o.block == 1] == [("float32",)]
    assert [o.gives for o in found if o.block == 0] == [("float16",)]
    assert found[-1].gives == ("float16",)
    choose = ChooseKernels(resolve("metal").target, {"strange": _strange}, {}, {})
    lowered = applied(choose, changed)
    softmax = [o for o in operations(functions(lowered)["forward"]) if o.name == "relax.nn.softmax"]
    assert [o.gives for o in softmax] == [("float16",), ("float32",)]


def test_a_part_that_nobody_knows() -> None:
    spec = {"forward": {"x": nn.spec.Tensor(["n", 8], "float16")}}
    mod, _ = Strange().export_tvm(spec)
    with pytest.raises(ValueError, match="part strange has neither kernels nor a decomposition"):
        applied(ChooseKernels(resolve("metal").target, {}, {}, {}), mod)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["llvm", "cuda -arch=sm_90"])
def test_kernels_of_a_chosen_block(target: str) -> None:
    """Weights are read as they are stored, by kernels that take and give float32."""
    mod = applied(FP32Layers([0]), small_module("q4f16_1", "float16"))
    mod = chosen(mod, resolve(target).target)
    results = []
    for binding in functions(mod)["rwkv_world_decode"].body.blocks[0].bindings:
        call = binding.value
        if isinstance(call, relax.Call) and callee(call) == "relax.call_tir":
            types = [str(field.ty.dtype) for field in call.args[1].fields]
            if types[1:3] == ["uint32", "float16"]:
                results.append((types[0], str(binding.var.ty.dtype)))
    wide_block = [("float32", "float32")] * 7
    block = [("float16", dtype) for dtype in ["float32"] * 2 + ["float16"] * 5]
    assert results == [*wide_block, *block, ("float16", "float32")]
