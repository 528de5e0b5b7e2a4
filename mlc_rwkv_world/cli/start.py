"""Starting fast: what a program that only runs models can do without."""

from __future__ import annotations

import gc
import os
import sys


def start_light() -> None:
    """Import nothing that only others need; to be called before numpy and tvm_ffi are imported.

    For programs that need neither PyTorch nor fast linear algebra outside of compiled code.
    """
    if "tvm_ffi" not in sys.modules:
        # tvm_ffi imports PyTorch where it can, for seconds; None makes that fail at once.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    # numpy's threads for linear algebra spin for a while after they are made.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Modules are hardly garbage; looking for it takes a tenth of importing them.
    gc.set_threshold(50_000)
