"""Which blocks a model needs in float32, measured: `--fp32-layers auto`."""

from __future__ import annotations

import dataclasses

from mlc_rwkv_world.checkpoint import Checkpoint
from mlc_rwkv_world.model.config import ModelConfig
from mlc_rwkv_world.numerics.observe import Progress, observe
from mlc_rwkv_world.numerics.prompts import BUILT_IN, encoded
from mlc_rwkv_world.numerics.subject import checkpoint_subject
from mlc_rwkv_world.storage import Format


@dataclasses.dataclass(frozen=True)
class Choice:
    """The blocks that have to compute in float32, and what was seen."""

    blocks: tuple[int, ...]
    reasons: tuple[str, ...]


def choose(
    checkpoint: Checkpoint,
    config: ModelConfig,
    fmt: Format,
    *,
    int8: bool = False,
    progress: Progress = lambda done, total: None,
) -> Choice:
    """Reads the built-in prompts in float16 and takes every block that leaves its range.

    So does one with a value in the range's last three quarters; with `int8`, where a CPU is to
    round the inputs of products to bytes, so does one with a product that cannot bear it. Blocks in
    float32 stay so for what follows, as they will in the library. A format that computes in
    float32 needs none but for `int8`.
    """
    if fmt.dtype == "float32" and not int8:
        return Choice((), (f"{fmt.name} computes in float32.",))
    config = dataclasses.replace(config, fp32_layers=(), fp32_reasons=())
    subject = checkpoint_subject(checkpoint, config, fmt, fmt.dtype).with_bytes(int8)
    prompts = encoded(BUILT_IN, subject.tokenizer)
    report, _ = observe(subject, prompts, BUILT_IN, progress=progress)
    read = f"measured on {len(BUILT_IN)} prompts of {prompts.tokens} tokens"
    return Choice(report.recommended, (*report.recommendation()[:-1], read))
