"""Names that mlc_llm reads from `tvm.relax` and that TVM 0.27 keeps in `tvm.ir`."""

from __future__ import annotations

from types import ModuleType

MOVED = ("Constant", "StringImm")


def add_aliases(_: ModuleType) -> None:
    """Without these, importing mlc_llm's models fails on TVM 0.27, whatever the model."""
    from tvm import ir, relax

    for name in MOVED:
        if not hasattr(relax, name) and hasattr(ir, name):
            setattr(relax, name, getattr(ir, name))
