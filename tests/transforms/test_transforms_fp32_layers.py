"""FP32Layers changes the types of the chosen blocks' operations and of nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import tvm
from support.modules import callee, functions, small_module
from tvm import IRModule, relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.models import operations as ops
from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END
from mlc_rwkv_world.transforms.choose_kernels import ChooseKernels
from mlc_rwkv_world.transforms.erase_block_marks import EraseBlockMarks
from mlc_rwkv_world.transforms.fp32_layers import FP32Layers

LAYERS = 3
FORMATS = ["q0f16", "q4f16_1"]
FORWARD = 7


@dataclasses.dataclass(frozen=True)
class Operation:
    """A call, the block that it stands in (None outside), and the types of what it touches."""

    block: int | None
    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def module(quantization: str) -> IRModule:
    return small_module(quantization, "float16", num_hidden_layers=LAYERS, rescale_every=2)


@cache
def widened(quantization: str, *blocks: int) -> IRModule:
    return FP32Layers(blocks)(module(quantization))


def dtypes(ty: object) -> tuple[str, ...]:
    if isinstance(ty, relax.TupleType):
        return tuple(dtype for field in ty.fields for dtype in dtypes(field))
    return (str(ty.dtype),) if isinstance(ty, relax.TensorType) else ()


def operations(func: relax.Function) -> Iterator[Operation]:
    """The operations of a function in order; marks belong to their block."""
    block = None
    for binding in func.body.blocks[0].bindings:
        call = binding.value
        if not isinstance(call, relax.Call):
            continue
        name = callee(call)
        if name == BLOCK_BEGIN:
            block = int(call.args[2].value)
        args = call.args[1:] if name.startswith(("rwkv_world", "vm.")) else call.args
        takes = tuple(dtype for arg in args for dtype in dtypes(arg.ty))
        yield Operation(block, name, takes, dtypes(call.ty))
        if name == BLOCK_END:
            block = None


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
                # Storage alone may still be float16, and what reads it gives float32.
                if o.name not in ("relax.astype", ops.PREFIX + "dequantize"):
                    assert "float16" not in o.takes, (name, o)
        old = without_casts(forward(before)[name])
        new = without_casts(found)
        assert [(o.block, o.name) for o in new] == [(o.block, o.name) for o in old]
        for was, now in zip(old, new, strict=True):
            if was.block not in blocks:
                assert now == was
            else:
                assert now.gives == tuple(d.replace("float16", "float32") for d in was.gives)


# Behind the last block its float32 value replaces the cast that stood there.
@pytest.mark.parametrize("blocks, more", [((0,), 2), ((1, 2), 0), ((0, 2), 2), ((0, 1, 2), 0)])
def test_casts_outside(blocks: tuple[int, ...], more: int) -> None:
    """Only at the edges: into a chosen block, and out of one where float16 is wanted."""
    for name, old in forward(module("q4f16_1")).items():
        found = forward(widened("q4f16_1", *blocks))[name]
        before, after = (
            sum(o.block is None and o.name == "relax.astype" for o in side) for side in (old, found)
        )
        assert after == before + more, name


def test_residual_between_chosen_blocks_stays_float32() -> None:
    mod = widened("q0f16", 1, 2)
    for func in functions(mod).values():
        begins = {}
        ends = {}
        for binding in func.body.blocks[0].bindings:
            name = callee(binding.value) if isinstance(binding.value, relax.Call) else ""
            if name == BLOCK_BEGIN:
                begins[int(binding.value.args[2].value)] = binding.value.args[1]
            if name == BLOCK_END:
                ends[int(binding.value.args[2].value)] = binding.var
        if begins:
            assert begins[2].same_as(ends[1])


@pytest.mark.parametrize("quantization", FORMATS)
def test_no_block_changes_nothing(quantization: str) -> None:
    mod = module(quantization)
    tvm.ir.assert_structural_equal(FP32Layers(())(mod), mod)


def test_float32_model_keeps_its_operations() -> None:
    mod = small_module("q4f32_1", "float32")
    assert forward(FP32Layers([0, 1])(mod)) == forward(mod)


def test_functions_signatures_stay() -> None:
    before, after = module("q4f16_1"), widened("q4f16_1", 0, 1, 2)
    for name, func in functions(before).items():
        changed = functions(after)[name]
        tvm.ir.assert_structural_equal(changed.ret_ty, func.ret_ty)
        for old, new in zip(func.params, changed.params, strict=True):
            tvm.ir.assert_structural_equal(new.ty, old.ty, map_free_vars=True)


def test_unknown_block() -> None:
    with pytest.raises(ValueError, match="no block 3"):
        FP32Layers([0, 3])(module("q0f16"))


class Strange(nn.Module):  # type: ignore[misc]
    """A model that is no RWKV: two marked blocks with operators that ours does not use."""

    def forward(self, x: Tensor) -> Tensor:
        for block in range(2):
            x = ops.block_begin(x, block)
            kept = op.sum(op.concat([x, x * 0.25], 1), -1, keepdims=True)
            x = op.softmax(x, -1) + kept
            x = ops.block_end(x, block)
        return op.tanh(x)


def test_any_marked_module() -> None:
    spec = {"forward": {"x": nn.spec.Tensor(["n", 8], "float16")}}
    mod, _ = Strange().export_tvm(spec)
    changed = FP32Layers([1])(mod)
    assert relax.analysis.check_well_formed(changed)
    (found,) = forward(changed).values()
    assert {d for o in found if o.block == 1 for d in o.gives} == {"float32"}
    assert {d for o in found if o.block == 0 for d in o.gives} == {"float16"}
    assert found[-1].gives == ("float16",)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["llvm", "cuda -arch=sm_90"])
def test_kernels_of_a_chosen_block(target: str) -> None:
    """Weights are read as they are stored, by kernels that take and give float32."""
    resolved = resolve(target).target
    with resolved:
        wide = FP32Layers([0])(small_module("q4f16_1", "float16"))
        mod = ChooseKernels(resolved)(EraseBlockMarks()(wide))
    results = []
    for binding in functions(mod)["rwkv_world_decode"].body.blocks[0].bindings:
        call = binding.value
        if isinstance(call, relax.Call) and callee(call) == "relax.call_tir":
            types = [str(field.ty.dtype) for field in call.args[1].fields]
            if types[1:] == ["uint32", "float16"]:
                results.append((types[0], str(binding.var.ty.dtype)))
    wide_block = [("float32", "float32")] * 7
    block = [("float16", dtype) for dtype in ["float32"] * 2 + ["float16"] * 5]
    assert results == [*wide_block, *block, ("float16", "float32")]
