"""What people may say of sampling, on a command line or in a conversation."""

from __future__ import annotations

from collections.abc import Callable

_NUMBERS = (
    *("temperature", "top_p", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
# Keywords of `Sampling`, with what reads each from a text.
SAMPLING: dict[str, Callable[[str], float]] = {**dict.fromkeys(_NUMBERS, float), "top_k": int}
