"""RWKV-6, as the table of versions lists it: RWKV-5 with another time mix."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.versions.rwkv5.version import RWKV5
from mlc_rwkv_world.versions.rwkv6 import model, parts, reference
from mlc_rwkv_world.versions.rwkv6.cpu import rules as cpu

RWKV6 = dataclasses.replace(
    RWKV5,
    model=model.RWKV6,
    parts=parts.DECOMPOSITIONS,
    rules={**RWKV5.rules, "llvm": cpu.RULES},
    reference=reference,
)
