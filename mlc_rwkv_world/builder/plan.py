"""Everything about a build that is settled before its first long step."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from mlc_rwkv_world.artifact.template import Template
from mlc_rwkv_world.artifact.templates import template_named, template_of
from mlc_rwkv_world.builder.choices import Choices
from mlc_rwkv_world.builder.options import AUTO
from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.compiler import metadata
from mlc_rwkv_world.compiler.export import ParameterSpec, parameters
from mlc_rwkv_world.convert.model_config import model_config
from mlc_rwkv_world.errors import UsageError
from mlc_rwkv_world.kernels.cpu.arithmetic import INT8
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.model.fp32_layers import parse
from mlc_rwkv_world.numerics.precision import choose
from mlc_rwkv_world.reporter import Reporter

# Of what a file system takes, the rest is for what stands before and after it in other names.
_LONGEST_NAME = 230


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to build from which checkpoint, and the folder where it is to stand."""

    checkpoint: Checkpoint
    choices: Choices
    config: ModelConfig
    specs: list[ParameterSpec]
    template: Template
    folder: Path

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.folder.name

    def described(self) -> dict[str, Any]:
        """The metadata of the library that this plan asks for."""
        chosen = self.choices
        return metadata.describe(
            self.config,
            chosen.format,
            self.specs,
            chosen.target,
            chosen.compute_dtype,
            chosen.arithmetic,
            stock=chosen.additions is not None,
        )


def make_plan(checkpoint: Checkpoint, choices: Choices, output: Path, reporter: Reporter) -> Plan:
    """The plan for one checkpoint, built below `output`.

    Raises CheckpointError, and UsageError, where its name can be none of an artifact too.
    """
    options, layers = choices.options, checkpoint.config.num_hidden_layers
    named = options.fp32_layers
    config = model_config(
        checkpoint,
        choices.format,
        context_window_size=-1 if options.max_seq_len is None else options.max_seq_len,
        prefill_chunk_size=options.prefill_chunk_size,
        max_batch_size=options.max_batch_size,
        fp32_layers=None if named is None or named == AUTO else parse(named, layers),
        float32_keys=options.float32_keys,
    )
    if named == AUTO:
        config = _measured(checkpoint, config, choices, reporter)
    folder = output / f"{checkpoint.name}-{choices.format.name}"
    _require_name(folder.name)
    if options.template is None:
        template = template_of(checkpoint.version, checkpoint.name)
    else:
        template = template_named(options.template)
    return Plan(checkpoint, choices, config, parameters(config, choices.format), template, folder)


def _require_name(name: str) -> None:
    """Raises UsageError where no list could name the files of an artifact called `name`.

    Or where its files and what is written beside it would have longer names than there are.
    """
    if odd := re.search(r"[\\\r\n]", name):
        raise UsageError(
            f"{name!r} cannot be the name of an artifact: it holds {odd[0]!r}. Rename the "
            "checkpoint, or give a folder that holds it."
        )
    if (length := len(os.fsencode(name))) > _LONGEST_NAME:
        raise UsageError(
            f"{name[:40]!r}... cannot be the name of an artifact: it has {length} bytes, and may "
            f"have {_LONGEST_NAME}. Rename the checkpoint, or give a folder that holds it."
        )


def _measured(
    checkpoint: Checkpoint, config: ModelConfig, choices: Choices, reporter: Reporter
) -> ModelConfig:
    """The configuration with the blocks in float32 that running the model asks for."""
    reporter.stage("measuring which blocks need float32")
    choice = choose(
        checkpoint,
        config,
        choices.format,
        int8=INT8 in choices.arithmetic.values(),
        progress=lambda done, total: reporter.progress(done, total, f"block {done - 1}"),
    )
    return dataclasses.replace(config, fp32_layers=choice.blocks, fp32_reasons=choice.reasons)
