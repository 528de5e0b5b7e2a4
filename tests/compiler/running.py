"""Runs a library of the small model on random parameters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tvm

TOKENS = [3, 90, 0, 41]


def logits(module: Any) -> np.ndarray:
    """Logits after a prefill of three tokens and a step, [2, vocabulary]."""
    machine = tvm.runtime.vm.VirtualMachine(module, tvm.cpu())
    described = json.loads(str(machine["_metadata"]()))
    rng = np.random.default_rng(0)
    stored = {}
    for param in described["params"]:
        if param["dtype"] == "uint32":
            values = rng.integers(0, 2**32, param["shape"], np.uint32)
        else:
            values = (rng.standard_normal(param["shape"]) / 8).astype(param["dtype"])
        stored[param["name"]] = tvm.runtime.tensor(values)
    ours = described["rwkv_world"]
    params = taken(machine, stored)
    rows = np.array(ours["initial_rows"], np.float32)[:, None]
    shape = (1, ours["num_hidden_layers"], len(rows), ours["hidden_size"])
    pool = tvm.runtime.tensor(np.broadcast_to(rows, shape).copy())
    slots = tvm.runtime.tensor(np.zeros((1, 2), np.int32))
    ids = tvm.runtime.tensor(np.array(TOKENS[:3], np.int32))
    offsets = tvm.runtime.tensor(np.array([0, 3], np.int32))
    first = machine["rwkv_world_prefill"](ids, offsets, slots, pool, params)[0].numpy()
    step = tvm.runtime.tensor(np.array(TOKENS[3:], np.int32))
    second = machine["rwkv_world_decode"](step, slots, pool, params)[0].numpy()
    return np.concatenate([first, second])


def taken(machine: Any, stored: dict[str, Any]) -> list[Any]:
    """The tensors that our functions take, packed where the library packs, of the stored ones."""
    entries = json.loads(str(machine["_metadata"]()))["rwkv_world"]["packed_params"]
    if entries is None:
        return list(stored.values())
    return [_packed(machine, entry, stored) for entry in entries]


def _packed(machine: Any, entry: dict[str, Any], stored: dict[str, Any]) -> Any:
    sources = [stored[name] for name in entry["from"]]
    return machine[entry["pack"]](*sources) if entry["pack"] else sources[0]
