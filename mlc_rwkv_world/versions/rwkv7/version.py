"""RWKV-7, as the table of versions lists it."""

from __future__ import annotations

from mlc_rwkv_world.artifact.tuned_state import TunedRows
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fields import spans
from mlc_rwkv_world.versions.rwkv7 import model, parts, reference, rules
from mlc_rwkv_world.versions.rwkv7.cpu import rules as cpu
from mlc_rwkv_world.versions.version import Version


def _tuned_rows(config: ModelConfig) -> TunedRows:
    """The heads' matrices, which files hold as (value, key), and the state as (key, value)."""
    _, wkv, _ = spans(model.fields(config))
    return TunedRows(wkv.row, wkv.rows, transposed=True)


RWKV7 = Version(
    model=model.RWKV7,
    fields=model.fields,
    halved_outputs=(),
    fp32_presets={},
    parts=parts.DECOMPOSITIONS,
    operations={},
    anywhere=rules.ANYWHERE,
    rules={"llvm": cpu.RULES},
    reference=reference,
    tuned_rows=_tuned_rows,
)
