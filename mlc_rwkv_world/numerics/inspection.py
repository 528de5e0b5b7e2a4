"""Inspecting a model: opening it, running it on prompts, comparing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.numerics.observe import Progress, observe
from mlc_rwkv_world.numerics.prompts import BUILT_IN, encoded
from mlc_rwkv_world.numerics.report import Library, Report
from mlc_rwkv_world.numerics.stepwise import Arithmetic, Array, Prompts, Stepwise
from mlc_rwkv_world.numerics.subject import Subject, open_subject

_SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "model_version")
_MOST_TOKENS = 4096


def inspect(
    subject: Subject,
    *,
    texts: Sequence[str] = BUILT_IN,
    against: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    stage: Callable[[str], None] = lambda text: None,
) -> Report:
    """Runs texts through a model and looks at every operation.

    It is compared with `against`, an artifact or a checkpoint (in float32), or else with itself in
    float32. Raises UsageError where the two are models of different shapes.
    """
    prompts = encoded(tuple(texts), subject.tokenizer)
    if prompts.tokens > _MOST_TOKENS:
        raise UsageError(
            f"the text has {prompts.tokens} tokens; give at most {_MOST_TOKENS} to look at."
        )
    name, reference = _reference(subject, against)
    stage("compiling its operations")
    stepwise = Stepwise([subject.arithmetic, reference], prompts)
    stage("running it block by block")
    report, logits = observe(subject, stepwise, texts, reference=1, against=name, progress=progress)
    return dataclasses.replace(report, library=_library(subject, prompts, report, logits))


def _reference(subject: Subject, against: str | Path | None) -> tuple[str, Arithmetic]:
    if against is None:
        source = "its weights" if subject.checkpoint is None else "the checkpoint"
        return f"{source} in float32", subject.in_float32()
    other = open_subject(against)
    ours, theirs = subject.arithmetic.config, other.arithmetic.config
    for field in _SAME:
        if getattr(ours, field) != getattr(theirs, field):
            raise UsageError(
                f"{subject.name} and {other.name} cannot be compared: {field} is "
                f"{getattr(ours, field)} and {getattr(theirs, field)}."
            )
    if other.checkpoint is not None:
        return f"{other.name} in float32", other.in_float32(ours)
    return other.name, other.arithmetic


def _library(subject: Subject, prompts: Prompts, report: Report, logits: Array) -> Library | None:
    """What the artifact's library for this CPU says to the same prompts, if it has one."""
    if subject.found is None or "cpu" not in subject.found.kinds:
        return None
    from mlc_rwkv_world.runtime.engine import Engine

    engine = Engine(subject.found, "cpu")
    states = [engine.new_state() for _ in prompts.ids]
    theirs = engine.prefill_batch([list(ids) for ids in prompts.ids], states)
    bad = int(np.count_nonzero(~np.isfinite(theirs)))
    metadata = engine.metadata
    same = metadata.compute_dtype == report.compute_dtype and (
        metadata.compute_dtype == "float32" or metadata.fp32_layers == report.fp32_layers
    )
    comparable = same and not report.needed and not bad and not report.bad_logits
    difference = float(np.abs(theirs - logits).max()) if comparable else None
    return Library(metadata.compute_dtype, metadata.fp32_layers, bad, difference)
