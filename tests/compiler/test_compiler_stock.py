"""What a library has for stock mlc_llm, and that our own functions do not depend on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from lowering import Lowered
from running import logits
from support.modules import functions

from mlc_rwkv_world.tvm_names import name_of

OURS = {"rwkv_world_prefill", "rwkv_world_decode", "rwkv_world_batch_decode"}
STOCK = {
    *("embed", "prefill", "decode", "batch_prefill", "batch_decode", "create_rnn_state"),
    *("softmax_with_temperature", "alloc_embedding_tensor"),
}
# Kernels that the engine calls by name.
ENGINE_KERNELS = {"apply_logit_bias_inplace", "apply_penalty_inplace", "apply_bitmask_inplace"}


def names(mod: tvm.IRModule) -> set[str]:
    return {name for name in functions(mod) if not name.startswith("rwkv_world_pack")}


def test_functions(lowered: Lowered, whole: Lowered) -> None:
    assert names(lowered.module) == {*OURS, "_metadata"}
    assert names(whole.module) == {*OURS, *STOCK, "_metadata"}
    small, large = (
        set(map(name_of, mod.get_global_vars())) for mod in (lowered.module, whole.module)
    )
    assert large >= ENGINE_KERNELS and not small & ENGINE_KERNELS
    assert len(small) < len(large) / 2


@pytest.mark.slow
def test_ours_are_the_same(linked: Path, whole_linked: Path) -> None:
    assert linked.stat().st_size < 0.6 * whole_linked.stat().st_size
    found: dict[bool, Any] = {}
    for stock, file in ((False, linked), (True, whole_linked)):
        module = tvm.runtime.load_module(str(file))
        machine = tvm.runtime.vm.VirtualMachine(module, tvm.cpu())
        assert json.loads(str(machine["_metadata"]()))["rwkv_world"]["stock"] is stock
        found[stock] = logits(module)
    np.testing.assert_array_equal(found[False], found[True])
