"""Inspecting a model: opening it, running it on prompts, comparing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlc_rwkv_world.artifact.metadata import LibraryMetadata
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import ArtifactError, TargetError, UsageError
from mlc_rwkv_world.kernels.cpu.arithmetic import BFLOAT16, FLOAT32, INT8, multiplied_as_bytes
from mlc_rwkv_world.kernels.cpu.features import multiplies_bytes
from mlc_rwkv_world.numerics.model import Model
from mlc_rwkv_world.numerics.observe import Progress, observe
from mlc_rwkv_world.numerics.prompts import BUILT_IN, Prompts, encoded
from mlc_rwkv_world.numerics.report import Library, Report
from mlc_rwkv_world.numerics.stepwise import Array
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

    An artifact's library for this CPU reads them too, if there is one that can be loaded; what it
    rounds to bytes, or a build for this CPU would, is measured beside.

    It is compared with `against`, an artifact or a checkpoint (in float32), or else with itself in
    float32. Raises UsageError where the two are models of different shapes.
    """
    prompts = encoded(tuple(texts), subject.tokenizer)
    if prompts.tokens > _MOST_TOKENS:
        raise UsageError(
            f"the text has {prompts.tokens} tokens; give at most {_MOST_TOKENS} to look at."
        )
    name, reference = _reference(subject, against)
    stage("asking its library")
    asked = _ask(subject, prompts)
    subject = subject.with_bytes(_rounds(subject, asked))
    stage("running it block by block")
    report, logits = observe(
        subject, prompts, texts, reference=reference, against=name, progress=progress
    )
    return dataclasses.replace(report, library=_library(asked, report, logits))


def _reference(subject: Subject, against: str | Path | None) -> tuple[str, Model]:
    if against is None:
        source = "its weights" if subject.checkpoint is None else "the checkpoint"
        return f"{source} in float32", subject.in_float32()
    other = open_subject(against)
    ours, theirs = subject.model.config, other.model.config
    for field in _SAME:
        if getattr(ours, field) != getattr(theirs, field):
            raise UsageError(
                f"{subject.name} and {other.name} cannot be compared: {field} is "
                f"{getattr(ours, field)} and {getattr(theirs, field)}."
            )
    if other.checkpoint is not None:
        return f"{other.name} in float32", other.in_float32(ours)
    return other.name, dataclasses.replace(other.model, int8=False)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What an artifact's library for this CPU said to the prompts: logits, or why it did not."""

    metadata: LibraryMetadata | None = None
    logits: Array | None = None
    fault: str | None = None

    @property
    def arithmetic(self) -> str:
        """What its products compute in, of several the least exact."""
        used = () if self.metadata is None else self.metadata.arithmetic.values()
        return next((one for one in (INT8, BFLOAT16) if one in used), FLOAT32)


def _ask(subject: Subject, prompts: Prompts) -> _Asked | None:
    """Reads the prompts with the artifact's own library, if there is one; its memory is freed."""
    found = subject.found
    # One that is not listed does not run, which the error says.
    if found is None or not ("cpu" in found.kinds or found.unlisted):
        return None
    from mlc_rwkv_world.runtime.device import release_unused
    from mlc_rwkv_world.runtime.engine import Engine

    try:
        engine = Engine(found, "cpu")
        states = [engine.new_state() for _ in prompts.ids]
        logits = engine.prefill_batch([list(ids) for ids in prompts.ids], states)
    except (ArtifactError, TargetError) as error:
        return _Asked(fault=str(error))
    metadata = engine.metadata
    del engine, states
    release_unused()
    return _Asked(metadata, logits)


def _rounds(subject: Subject, asked: _Asked | None) -> bool:
    """Whether a CPU rounds the inputs of this model's products to bytes, or would if built here."""
    if asked is not None and asked.metadata is not None:
        return asked.arithmetic == INT8
    for_cpu = subject.found is None or subject.found.kinds <= {"cpu"}
    suits = multiplied_as_bytes(subject.model.format.matrix)
    return for_cpu and suits and multiplies_bytes(resolve("llvm").target)


def _library(asked: _Asked | None, report: Report, logits: Array) -> Library | None:
    """What the artifact's library said, beside what was found here."""
    if asked is None:
        return None
    if asked.metadata is None or asked.logits is None:
        return Library(fault=asked.fault)
    metadata = asked.metadata
    bad = int(np.count_nonzero(~np.isfinite(asked.logits)))
    same = metadata.compute_dtype == report.compute_dtype and (
        metadata.compute_dtype == "float32" or metadata.fp32_layers == report.fp32_layers
    )
    comparable = same and not report.needed and not bad and not report.bad_logits
    difference = float(np.abs(asked.logits - logits).max()) if comparable else None
    return Library(metadata.compute_dtype, metadata.fp32_layers, asked.arithmetic, bad, difference)
