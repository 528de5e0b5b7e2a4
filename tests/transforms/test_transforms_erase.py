"""Erasing the marks leaves everything else as it was."""

from __future__ import annotations

import pytest
from support.modules import LAYERS, callees, functions, small_module
from tvm import IRModule, relax

from mlc_rwkv_world.models.operations import BLOCK_BEGIN, BLOCK_END
from mlc_rwkv_world.transforms.erase_block_marks import EraseBlockMarks


@pytest.fixture(scope="module")
def mod() -> IRModule:
    return small_module("q0f16", "float16")


def test_only_the_marks_go(mod: IRModule) -> None:
    before = {name: callees(func) for name, func in functions(mod).items()}
    erased = EraseBlockMarks()(mod)
    assert relax.analysis.check_well_formed(erased)
    assert set(erased.get_global_vars()) == set(mod.get_global_vars())
    for name, func in functions(erased).items():
        marks = {BLOCK_BEGIN: LAYERS, BLOCK_END: LAYERS} if before[name][BLOCK_BEGIN] else {}
        before[name].subtract(marks)
        assert callees(func) == +before[name], name
        assert func.ret_ty == functions(mod)[name].ret_ty


def test_the_module_that_was_given_stays(mod: IRModule) -> None:
    EraseBlockMarks()(mod)
    assert callees(functions(mod)["decode"])[BLOCK_BEGIN] == LAYERS
