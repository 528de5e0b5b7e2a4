"""Builds an artifact that stock mlc_llm runs as well, unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlc_rwkv_world import builder
from mlc_rwkv_world.builder import Artifact


def build(source: str | Path | None = None, *, stock: bool = True, **options: Any) -> Artifact:
    """`builder.build` with the functions that stock mlc_llm's engine calls.

    Without `stock` the library is half as large and compiled sooner.
    """
    additions = None
    if stock:
        from mlc_rwkv_world.stock.additions import STOCK

        additions = STOCK
    return builder.build(source, additions=additions, **options)
