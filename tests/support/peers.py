"""Logits of BlinkDL's `rwkv`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def rwkv_logits(pth: Path, ids: Sequence[int], strategy: str = "cpu fp32") -> np.ndarray:
    """The logits [T, V] after each token, one at a time.

    The file should hold float32: `rwkv` folds the first normalization into the embedding in the
    checkpoint's own type.
    """
    os.environ.update(RWKV_JIT_ON="0", RWKV_V7_ON="0")
    from rwkv.model import RWKV

    model = RWKV(model=str(pth), strategy=strategy, verbose=False)
    rows, state = [], None
    for token in ids:
        out, state = model.forward([token], state)
        rows.append(out.float().numpy().copy())
    return np.stack(rows)
