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
