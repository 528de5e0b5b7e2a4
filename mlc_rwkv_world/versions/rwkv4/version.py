"""RWKV-4, as the table of versions lists it."""

from __future__ import annotations

from mlc_rwkv_world.versions.rwkv4 import model, operations, parts, reference
from mlc_rwkv_world.versions.rwkv4.cpu import rules as cpu
from mlc_rwkv_world.versions.rwkv4.cuda import rules as cuda
from mlc_rwkv_world.versions.version import Version

RWKV4 = Version(
    model=model.RWKV4,
    fields=lambda config: model.FIELDS,
    halved_outputs=("attention.output.weight", "feed_forward.value.weight"),
    # 1.5B leaves float16's range in its first block.
    fp32_presets={(24, 2048): (0,)},
    parts=parts.DECOMPOSITIONS,
    operations=operations.KERNELS,
    anywhere={},
    rules={"llvm": cpu.RULES, "cuda": cuda.RULES},
    reference=reference,
)
