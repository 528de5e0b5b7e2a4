"""RWKV-7, as the table of versions lists it."""

from __future__ import annotations

from mlc_rwkv_world.versions import matrices
from mlc_rwkv_world.versions.rwkv7 import model, parts, reference, rules
from mlc_rwkv_world.versions.rwkv7.cpu import rules as cpu
from mlc_rwkv_world.versions.rwkv7.cuda import rules as cuda
from mlc_rwkv_world.versions.version import Version

RWKV7 = Version(
    model=model.RWKV7,
    fields=matrices.fields,
    halved_outputs=(),
    fp32_presets={},
    parts=parts.DECOMPOSITIONS,
    operations={},
    anywhere=rules.ANYWHERE,
    rules={"cuda": cuda.RULES, "llvm": cpu.RULES},
    reference=reference,
    tuned_rows=matrices.tuned_rows,
)
