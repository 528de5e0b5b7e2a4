"""Starting fast: what a program that only runs models can do without."""

from __future__ import annotations

import os
import sys


def start_light() -> None:
    """Load TVM's runtime alone, and none of what tvm_ffi imports where it can, PyTorch above all.

    That saves seconds, and as much memory as a small model takes. For programs that need neither
    TVM's compiler nor PyTorch; does nothing once TVM was imported.
    """
    if "tvm" not in sys.modules:
        os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
        # None makes `import torch` fail at once.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        _expect_missing_types()


def _expect_missing_types() -> None:
    """Let `import tvm` ask for types that the runtime library lacks without an error inside.

    It skips them either way; but the first error writes a C++ backtrace, for 0.3 s.
    """
    from tvm_ffi import core, get_global_func

    list_keys = get_global_func("ffi.GetRegisteredTypeKeys", allow_missing=True)
    look_up = getattr(core, "_object_type_key_to_index", None)
    if list_keys is None or look_up is None:
        return
    known: set[str] = set()

    def index_of(type_key: str) -> int | None:
        if type_key not in known:
            known.update(map(str, list_keys()))
        return look_up(type_key) if type_key in known else None

    core._object_type_key_to_index = index_of
