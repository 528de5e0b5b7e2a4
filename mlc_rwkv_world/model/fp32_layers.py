"""Which blocks compute in float32 although the model computes in float16."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

from mlc_rwkv_world.errors import UsageError


def parse(text: str, num_hidden_layers: int) -> tuple[int, ...]:
    """`all`, `none`, or numbers and ranges (`0,2-5`), as block numbers in order.

    Raises UsageError for anything else, and for a block that the model does not have.
    """
    if text in ("all", "none"):
        return tuple(range(num_hidden_layers)) if text == "all" else ()
    blocks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(
                f"--fp32-layers {text!r}: {part!r} is no block; give numbers and ranges such as "
                "0,2-5, or all, none or auto."
            )
        blocks.update(range(first, last + 1))
    return checked(blocks, num_hidden_layers)


def checked(blocks: Iterable[int], num_hidden_layers: int) -> tuple[int, ...]:
    """The blocks in order; UsageError where the model lacks one."""
    ordered = sorted(set(blocks))
    for block in ordered:
        if type(block) is not int or not 0 <= block < num_hidden_layers:
            raise UsageError(
                f"fp32_layers: there is no block {block!r}; the model has blocks 0 to "
                f"{num_hidden_layers - 1}."
            )
    return tuple(ordered)


def spelled(blocks: Iterable[int]) -> str:
    """Blocks as `parse` reads them: `0,2-5`, or `none`."""
    runs = [
        [block for _, block in run]
        for _, run in groupby(enumerate(sorted(blocks)), lambda pair: pair[1] - pair[0])
    ]
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(parts) or "none"
