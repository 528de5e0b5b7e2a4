"""A reference's own words: the tokens that its greatest logits choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NEW_TOKENS = 16
USED_IDS = 65529
# Where the best two logits are closer, which one wins is nobody's mistake.
TIE = 1e-3


def greedy(
    forward: Callable[[Sequence[int], Any], tuple[Any, Any]], prompt: Sequence[int]
) -> tuple[list[int], int]:
    """The tokens after a prompt, and how many of them come before the first near tie.

    `forward(ids, state)` gives the last logits, a tensor of PyTorch, and the state after them, as
    BlinkDL's `rwkv` does.
    """
    logits, state = forward(prompt, None)
    ids: list[int] = []
    certain = NEW_TOKENS
    for step in range(NEW_TOKENS):
        values = np.asarray(logits.numpy(), np.float32)[:USED_IDS]
        second, first = np.partition(values, -2)[-2:]
        if first - second < TIE:
            certain = min(certain, step)
        ids.append(int(values.argmax()))
        logits, state = forward(ids[-1:], state)
    return ids, certain
