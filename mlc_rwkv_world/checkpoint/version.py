"""Which RWKV a set of tensors is, told by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Newest first: later versions keep parts of the earlier ones.
_MARKS_OF_LATER_VERSIONS = (
    (7, re.compile(r"\b(att|attn|attention)\.(x_r|r_k)\b")),
    # The second is what ModelScope's .st files call it.
    (6, re.compile(r"\btime_(maa|mix_w1\b)")),
    (5, re.compile(r"\bln_x\b")),
)


def rwkv_version(names: Iterable[str]) -> int:
    """Which RWKV has tensors of these names, in any naming.

    It is 4 unless the mark of a later version is there.
    """
    every = list(names)
    for version, mark in _MARKS_OF_LATER_VERSIONS:
        if any(mark.search(name) for name in every):
            return version
    return 4
