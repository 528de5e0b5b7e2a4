"""Starting fast: what our programs can do without."""

from __future__ import annotations

import gc
import os
import sys


def start() -> None:
    """Import nothing that only others need; to be called before tvm_ffi is imported.

    For programs of ours that do not need PyTorch.
    """
    if "tvm_ffi" not in sys.modules:
        # tvm_ffi imports PyTorch where it can, for seconds; None makes that fail at once.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    # Modules and kernels are hardly garbage; looking for it takes a tenth of importing the ones,
    # and a third of parsing the others.
    gc.set_threshold(50_000)


def start_light() -> None:
    """As `start`, for programs that only run models; to be called before numpy is imported."""
    start()
    # numpy's threads for linear algebra spin for a while after they are made.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
