"""Builds an artifact from options as they are said to Python."""

from __future__ import annotations

import dataclasses
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from mlc_rwkv_world.builder import assemble
from mlc_rwkv_world.builder.assemble import Artifact
from mlc_rwkv_world.builder.options import Options
from mlc_rwkv_world.reporter import Reporter


def build(
    source: str | Path | None = None, *, reporter: Reporter | None = None, **options: Any
) -> Artifact:
    """Builds `<output>/<model>-<quantization>` from a checkpoint, whole or not at all.

    `options` are the fields of `builder.options.Options`, which describes them, as does
    `python -m mlc_rwkv_world build --help`. `reporter` hears of stages and progress.

    Raises the errors of `mlc_rwkv_world.errors`; TypeError for an option that there is not.
    """
    chosen = Options(source=source, **options)
    additions = None
    if chosen.stock:
        # A build without them imports nothing of stock's.
        from mlc_rwkv_world.stock.additions import STOCK

        additions = STOCK
    return assemble.build(chosen, additions, reporter)


def _signature() -> Signature:
    """What `help` and editors show of `build`."""
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(Options)
    ]
    source = options.pop(0).replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
    reporter = Parameter(
        "reporter", Parameter.KEYWORD_ONLY, default=None, annotation="Reporter | None"
    )
    return Signature([source, *options, reporter], return_annotation="Artifact")


vars(build)["__signature__"] = _signature()
