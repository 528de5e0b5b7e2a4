"""What a host of our libraries has in them beside our own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tvm.ir.transform import Pass
from tvm.target import Target

from mlc_rwkv_world.kernels.table import Kernel
from mlc_rwkv_world.model.causal_lm import CausalLM
from mlc_rwkv_world.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Additions:
    """Functions that a host calls, exported and compiled with ours.

    `model` is the language model that exports them too, `operations` the kernels of the named
    operations that only they have. `passes` come before ours, and may add functions that are no
    part of the model. `code` is the folder of all that: lowered modules depend on it.
    """

    model: type[CausalLM]
    operations: Mapping[str, Kernel]
    passes: Callable[[Target, ModelConfig], Sequence[Pass]]
    code: Path
