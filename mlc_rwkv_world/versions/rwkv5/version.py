"""RWKV-5, as the table of versions lists it."""

from __future__ import annotations

from mlc_rwkv_world.versions import matrices
from mlc_rwkv_world.versions.rwkv4.cuda.rules import gated_residual
from mlc_rwkv_world.versions.rwkv4.version import RWKV4
from mlc_rwkv_world.versions.rwkv5 import model, parts, reference, rules
from mlc_rwkv_world.versions.rwkv5.cpu import rules as cpu
from mlc_rwkv_world.versions.rwkv5.cuda import rules as cuda
from mlc_rwkv_world.versions.version import Version

RWKV5 = Version(
    model=model.RWKV5,
    fields=matrices.fields,
    halved_outputs=RWKV4.halved_outputs,
    fp32_presets={},
    parts=parts.DECOMPOSITIONS,
    operations={},
    anywhere=rules.ANYWHERE,
    # The channel mix is RWKV-4's, and so are its kernels.
    rules={"cuda": {**cuda.RULES, "rwkv4.gated_residual": gated_residual}, "llvm": cpu.RULES},
    reference=reference,
    tuned_rows=matrices.tuned_rows,
)
